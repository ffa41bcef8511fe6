(* Theorem 12: the spectral norm between two inner-product spaces, its duality map, and its invariance. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.Theory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Spectral.

Variables (F : realFieldType) (q p : nat).
Implicit Types (D E X : 'M[F]_(q, p)) (G : 'M[F]_q) (B : 'M[F]_p).

(* The unit ball: D lengthens no vector, measured by B before and by G after; nor any number of vectors together. *)
Definition contraction G B D := forall k (x : 'M[F]_(p, k)),
  pairing (D *m x) (G *m (D *m x)) <= pairing x (B *m x).

(* The duality map as a set: the elements of the ball on which the covector X is largest. *)
Definition sharp G B X D := contraction G B D /\ forall E, contraction G B E -> pairing X E <= pairing X D.

Section Frames.

Variables (r : 'M[F]_q) (alpha : 'M[F]_p).
Hypothesis r_invertible : r \in unitmx.
Hypothesis alpha_invertible : alpha \in unitmx.

Local Notation move_G G := (contragredient r *m G *m invmx r).
Local Notation move_B B := (contragredient alpha *m B *m invmx alpha).
Local Notation move D := (r *m D *m invmx alpha).
Local Notation move_covector X := (contragredient r *m X *m alpha^T).

Lemma form_moves n k (P g : 'M[F]_n) (y : 'M[F]_(n, k)) : P \in unitmx ->
  pairing (P *m y) (contragredient P *m g *m invmx P *m (P *m y)) = pairing y (g *m y).
Proof.
move=> uP; rewrite -[LHS]pairingC pairing_mull -!mulmxA (mulKmx uP) [P^T *m _]mulmxA.
by rewrite contragredient_left // mul1mx pairingC.
Qed.

Lemma ball_moves G B D : contraction G B D -> contraction (move_G G) (move_B B) (move D).
Proof.
move=> c k x; have -> : move D *m x = r *m (D *m (invmx alpha *m x)) by rewrite !mulmxA.
rewrite form_moves // [X in _ <= X](_ : _ = pairing (invmx alpha *m x) (B *m (invmx alpha *m x))); first exact: c.
by rewrite -[RHS](form_moves _ _ alpha_invertible) mulKVmx.
Qed.

Lemma ball_moves_back G B D : contraction (move_G G) (move_B B) D -> contraction G B (invmx r *m D *m alpha).
Proof.
move=> c k x; have := c k (alpha *m x); rewrite form_moves //.
have -> : D *m (alpha *m x) = r *m (invmx r *m D *m alpha *m x) by rewrite !mulmxA mulmxV // mul1mx.
by rewrite form_moves.
Qed.

Lemma value_moves X D : pairing (move_covector X) (move D) = pairing X D.
Proof.
rewrite pairing_mulr pairing_mull -!mulmxA (mulmxA r^T) contragredient_left // mul1mx.
by rewrite -trmx_mul mulVmx // trmx1 mulmx1.
Qed.

(* The duality map moves with the frames, whatever the covector, its rank, or the number of its maximizers. *)
Theorem spectral_sharp_is_natural G B X D :
  sharp G B X D -> sharp (move_G G) (move_B B) (move_covector X) (move D).
Proof.
case=> ball best; split; first exact: ball_moves.
move=> E ballE; rewrite value_moves.
have -> : E = move (invmx r *m E *m alpha) by rewrite !mulmxA mulmxV // mul1mx mulmxK.
by rewrite value_moves; apply/best/ball_moves_back.
Qed.

End Frames.

(* In orthonormal frames G = 1 and B = 1. If X = P y y^T, where P is a contraction that keeps the lengths of the columns
   of y (the partial isometry of the polar decomposition), then P is in the duality map: this is the matrix sign. *)
Theorem polar_factor_is_the_sharp k (P : 'M[F]_(q, p)) (y : 'M[F]_(p, k)) :
  contraction 1%:M 1%:M P -> P^T *m P *m y = y -> sharp 1%:M 1%:M (P *m y *m y^T) P.
Proof.
move=> cP isometry; split=> // E cE.
have value D : pairing (P *m y *m y^T) D = pairing (P *m y) (D *m y) by rewrite -pairing_mulr.
have kept : pairing (P *m y) (P *m y) = pairing y y by rewrite pairing_mull mulmxA isometry.
rewrite !value kept; have := cE k y; rewrite !mul1mx => short.
have square (z : 'M[F]_(q, k)) : 0 <= pairing z z.
  by rewrite pairingE; apply: sumr_ge0 => j _; apply: sumr_ge0 => i _; rewrite -expr2 sqr_ge0.
have := square (P *m y - E *m y).
rewrite !(pairingDl, pairingDr, pairingNl, pairingNr) kept [pairing (E *m y) (P *m y)]pairingC opprK.
rewrite [- _ + pairing (E *m y) _]addrC => far.
have twice : 0 <= (pairing y y - pairing (P *m y) (E *m y)) *+ 2.
  apply: le_trans far _; rewrite mulr2n addrA [X in _ <= X]addrA ler_add2r addrAC [X in _ <= X]addrAC.
  by rewrite ler_add2r ler_add2l.
by rewrite -subr_ge0 -(pmulrn_lge0 _ (ltn0Sn 1)).
Qed.

End Spectral.
