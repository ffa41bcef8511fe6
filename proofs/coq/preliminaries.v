(* What every file uses: the pairing of a covector with a vector, and how both move when the space does.

   Vectors are columns, or matrices where the space is Hom(A, S) = S (x) A*. A covector of Hom(A, S) is stored as a
   matrix of the same shape, as autograd returns it, and <X, D> = tr(X^T D) is its value on D. An inner product g is
   stored as the matrix of its flat, v |-> g v. An isomorphism r of a space is an invertible matrix. *)

From mathcomp Require Import all_ssreflect all_algebra.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

(* The inverse transpose: how covectors move when vectors move by r. *)
Definition contragredient (F : fieldType) n (r : 'M[F]_n) : 'M[F]_n := (invmx r)^T.

(* The value of a covector on a vector. *)
Definition pairing (F : fieldType) m n (X D : 'M[F]_(m, n)) : F := \tr (X^T *m D).

Section Inverses.

Variable F : fieldType.

Lemma inverse_of_product n (r s : 'M[F]_n) :
  r \in unitmx -> s \in unitmx -> invmx (r *m s) = invmx s *m invmx r.
Proof.
move=> ur us; have urs : r *m s \in unitmx by rewrite unitmx_mul ur.
by apply: (can_inj (mulKmx urs)); rewrite mulmxV // mulmxA mulmxK // mulmxV.
Qed.

Lemma inverse_from_right n (r s : 'M[F]_n) : r *m s = 1%:M -> r \in unitmx /\ invmx r = s.
Proof.
move=> rs1; have [ur _] := mulmx1_unit rs1; split=> //.
by rewrite -[RHS](mulKmx ur) rs1 mulmx1.
Qed.

Lemma contragredient_unit n (r : 'M[F]_n) : r \in unitmx -> contragredient r \in unitmx.
Proof. by move=> ur; rewrite /contragredient unitmx_tr unitmx_inv. Qed.

Lemma contragredient_inverse n (r : 'M[F]_n) : r \in unitmx -> invmx (contragredient r) = r^T.
Proof. by move=> ur; rewrite /contragredient -trmx_inv invmxK. Qed.

Lemma contragredientK n (r : 'M[F]_n) : r \in unitmx -> contragredient (contragredient r) = r.
Proof. by move=> ur; rewrite {1}/contragredient contragredient_inverse // trmxK. Qed.

Lemma contragredient_left n (r : 'M[F]_n) : r \in unitmx -> r^T *m contragredient r = 1%:M.
Proof. by move=> ur; rewrite /contragredient -trmx_mul mulVmx // trmx1. Qed.

Lemma contragredient_right n (r : 'M[F]_n) : r \in unitmx -> contragredient r *m r^T = 1%:M.
Proof. by move=> ur; rewrite /contragredient -trmx_mul mulmxV // trmx1. Qed.

End Inverses.

Section Pairing.

Variable F : fieldType.

Lemma pairingE m n (X D : 'M[F]_(m, n)) : pairing X D = \sum_j \sum_i X i j * D i j.
Proof. by apply: eq_bigr => j _; rewrite mxE; apply: eq_bigr => i _; rewrite mxE. Qed.

Lemma pairingC m n (X D : 'M[F]_(m, n)) : pairing X D = pairing D X.
Proof. by rewrite /pairing -mxtrace_tr trmx_mul trmxK. Qed.

Lemma pairingDl m n (X Y D : 'M[F]_(m, n)) : pairing (X + Y) D = pairing X D + pairing Y D.
Proof. by rewrite /pairing linearD mulmxDl linearD. Qed.

Lemma pairingDr m n (X D E : 'M[F]_(m, n)) : pairing X (D + E) = pairing X D + pairing X E.
Proof. by rewrite /pairing mulmxDr linearD. Qed.

Lemma pairingNl m n (X D : 'M[F]_(m, n)) : pairing (- X) D = - pairing X D.
Proof. by rewrite /pairing linearN mulNmx linearN. Qed.

Lemma pairingNr m n (X D : 'M[F]_(m, n)) : pairing X (- D) = - pairing X D.
Proof. by rewrite /pairing mulmxN linearN. Qed.

Lemma pairingZl m n k (X D : 'M[F]_(m, n)) : pairing (k *: X) D = k * pairing X D.
Proof. by rewrite /pairing linearZ -scalemxAl linearZ. Qed.

Lemma pairingZr m n k (X D : 'M[F]_(m, n)) : pairing X (k *: D) = k * pairing X D.
Proof. by rewrite pairingC pairingZl pairingC. Qed.

Lemma pairing0l m n (D : 'M[F]_(m, n)) : pairing 0 D = 0.
Proof. by rewrite /pairing trmx0 mul0mx linear0. Qed.

Lemma pairing0r m n (X : 'M[F]_(m, n)) : pairing X 0 = 0.
Proof. by rewrite pairingC pairing0l. Qed.

Lemma pairing_suml m n (I : finType) (X : I -> 'M[F]_(m, n)) D :
  pairing (\sum_i X i) D = \sum_i pairing (X i) D.
Proof.
apply: (big_morph (fun Y => pairing Y D)) => [Y Z|]; first exact: pairingDl.
exact: pairing0l.
Qed.

Lemma pairing_sumr m n (I : finType) X (D : I -> 'M[F]_(m, n)) :
  pairing X (\sum_i D i) = \sum_i pairing X (D i).
Proof. by rewrite pairingC pairing_suml; apply: eq_bigr => i _; rewrite pairingC. Qed.

(* Transposes: P acts on the left of a vector, so P^T on the left of a covector; Q alike on the right. *)
Lemma pairing_mull m n p (P : 'M[F]_(m, p)) (X : 'M[F]_(m, n)) (D : 'M[F]_(p, n)) :
  pairing X (P *m D) = pairing (P^T *m X) D.
Proof. by rewrite /pairing trmx_mul trmxK mulmxA. Qed.

Lemma pairing_mulr m n p (Q : 'M[F]_(p, n)) (X : 'M[F]_(m, n)) (D : 'M[F]_(m, p)) :
  pairing X (D *m Q) = pairing (X *m Q^T) D.
Proof. by rewrite /pairing trmx_mul trmxK mulmxA mxtrace_mulC mulmxA. Qed.

(* Nothing but zero vanishes on every vector. *)
Lemma pairing_nondegenerate m n (X Y : 'M[F]_(m, n)) : (forall D, pairing X D = pairing Y D) -> X = Y.
Proof.
move=> same; apply/matrixP => i j; move: (same (delta_mx i j)); rewrite !pairingE.
have single (Z : 'M[F]_(m, n)) : \sum_l \sum_k Z k l * delta_mx i j k l = Z i j.
  rewrite (bigD1 j) //= (bigD1 i) //= big1 => [|k ki]; last by rewrite mxE (negPf ki) mulr0.
  rewrite !big1 => [|l lj]; first by rewrite mxE !eqxx mulr1 !addr0.
  by rewrite big1 // => k _; rewrite mxE (negPf lj) andbF mulr0.
by rewrite !single.
Qed.

(* Two maps that agree on every vector are one, and so are two forms that agree on every pair. *)
Lemma map_ext m n (P Q : 'M[F]_(m, n)) : (forall v : 'cV_n, P *m v = Q *m v) -> P = Q.
Proof.
move=> same; apply: trmx_inj; apply/row_matrixP => i; rewrite !rowE.
by apply: trmx_inj; rewrite !trmx_mul !trmxK same.
Qed.

Lemma form_ext n (g h : 'M[F]_n) :
  (forall u v : 'cV_n, pairing u (g *m v) = pairing u (h *m v)) -> g = h.
Proof.
move=> same; apply: map_ext => v; apply: pairing_nondegenerate => u.
by rewrite pairingC same pairingC.
Qed.

End Pairing.
