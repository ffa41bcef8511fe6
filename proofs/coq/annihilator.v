(* Theorem 10: the natural gradient projected on the annihilator of some covectors keeps them at zero, does not depend
   on coordinates, and is the best step among those that keep them at zero. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries sharp_is_natural.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Annihilator.

Variables (F : fieldType) (n k : nat).
Implicit Types (g r : 'M[F]_n) (C : 'M[F]_(k, n)) (xi v : 'cV[F]_n).

(* Rows of C are the covectors of what must not change; C v = 0 says that v leaves them alone. *)
Definition gram g C := C *m invmx g *m C^T.
Definition multipliers g C xi := invmx (gram g C) *m (C *m invmx g *m xi).
Definition projected_step g C xi := - (sharp g (xi - C^T *m multipliers g C xi)).

Theorem protected_covectors_vanish g C xi : gram g C \in unitmx -> C *m projected_step g C xi = 0.
Proof.
move=> uK; rewrite /projected_step /sharp mulmxN !mulmxBr.
have -> : C *m (invmx g *m (C^T *m multipliers g C xi)) = gram g C *m multipliers g C xi by rewrite /gram !mulmxA.
by rewrite /multipliers mulKVmx // mulmxA subrr oppr0.
Qed.

(* Covectors are rows here, so they move by the inverse on the right. *)
Lemma gram_is_natural r g C : r \in unitmx -> g \in unitmx -> gram (move_form r g) (C *m invmx r) = gram g C.
Proof.
move=> ur ug; rewrite /gram /move_form.
have uc := contragredient_unit ur.
rewrite !inverse_of_product ?unitmx_mul ?uc ?unitmx_inv // invmxK contragredient_inverse //.
rewrite trmx_mul -/(contragredient r) !mulmxA mulmxKV // -!mulmxA [r^T *m _]mulmxA.
by rewrite contragredient_left // mul1mx !mulmxA.
Qed.

Theorem projected_step_is_natural r g C xi : r \in unitmx -> g \in unitmx ->
  projected_step (move_form r g) (C *m invmx r) (move_covector r xi) = r *m projected_step g C xi.
Proof.
move=> ur ug; rewrite /projected_step mulmxN; congr (- _).
suff same : multipliers (move_form r g) (C *m invmx r) (move_covector r xi) = multipliers g C xi.
  rewrite same -sharp_is_natural //; congr sharp.
  by rewrite /move_covector mulmxBr trmx_mul -mulmxA.
rewrite /multipliers gram_is_natural //; congr (_ *m _).
have -> : C *m invmx r *m invmx (move_form r g) *m move_covector r xi
    = C *m invmx r *m sharp (move_form r g) (move_covector r xi) by rewrite /sharp !mulmxA.
by rewrite sharp_is_natural // /sharp !mulmxA mulmxKV.
Qed.

(* With no covector to protect it is the natural gradient. *)
Theorem nothing_protected g C xi : C = 0 -> projected_step g C xi = - sharp g xi.
Proof. by move=> ->; rewrite /projected_step trmx0 mul0mx subr0. Qed.

End Annihilator.

(* Optimality, over any ordered field. *)
Section Optimality.

Variables (F : realFieldType) (n k : nat) (g : 'M[F]_n) (C : 'M[F]_(k, n)) (xi : 'cV[F]_n).
Hypothesis g_invertible : g \in unitmx.
Hypothesis g_symmetric : g^T = g.
Hypothesis g_positive : forall v : 'cV[F]_n, 0 <= pairing v (g *m v).
Hypothesis covectors_independent : gram g C \in unitmx.

(* The model of the loss: its differential and half the squared length of the step. *)
Definition model (v : 'cV[F]_n) := pairing xi v + 2%:R^-1 * pairing v (g *m v).

Local Notation v := (projected_step g C xi).

(* The step is stationary up to the protected covectors. *)
Lemma flat_of_step : g *m v = C^T *m multipliers g C xi - xi.
Proof. by rewrite /projected_step /sharp mulmxN mulKVmx // opprB. Qed.

Lemma annihilated_directions_are_stationary (w : 'cV[F]_n) : C *m w = 0 -> pairing (g *m v) w = - pairing xi w.
Proof.
move=> Cw; rewrite flat_of_step pairingDl pairingNl.
by rewrite -pairing_mull Cw pairing0r add0r.
Qed.

Theorem excess_of_any_other_step (w : 'cV[F]_n) : C *m w = 0 ->
  model w = model v + 2%:R^-1 * pairing (w - v) (g *m (w - v)).
Proof.
move=> Cw; have Cv : C *m v = 0 by apply: protected_covectors_vanish.
have half (x : F) : 2%:R^-1 * (x + x) = x by rewrite -mulr2n -[x *+ 2]mulr_natl mulKf // pnatr_eq0.
have Ce : C *m (w - v) = 0 by rewrite mulmxBr Cw Cv subrr.
have: w = v + (w - v) by rewrite addrC subrK.
move: (w - v) Ce => e Ce ->.
have cross : pairing v (g *m e) = - pairing xi e.
  by rewrite pairing_mull g_symmetric annihilated_directions_are_stationary.
have cross' : pairing e (g *m v) = - pairing xi e.
  by rewrite pairingC annihilated_directions_are_stationary.
rewrite /model mulmxDr !(pairingDl, pairingDr) cross cross'.
set a := pairing xi v; set b := pairing xi e; set P := pairing v _; set E := pairing e _.
rewrite [- b + E]addrC addrACA -opprD mulrBr half mulrDr.
by rewrite addrACA subrr addr0 addrA.
Qed.

(* Theorem 10. Among all steps that leave the protected covectors alone, this one is best. *)
Theorem projected_step_is_optimal (w : 'cV[F]_n) : C *m w = 0 -> model v <= model w.
Proof.
move=> Cw; rewrite (excess_of_any_other_step Cw) ler_addl mulr_ge0 ?invr_ge0 ?ler0n //.
Qed.

(* It descends: the differential is minus the squared length on it. *)
Theorem projected_step_descends : pairing xi v = - pairing v (g *m v) /\ pairing xi v <= 0.
Proof.
have eq : pairing xi v = - pairing v (g *m v).
  rewrite [pairing v _]pairingC annihilated_directions_are_stationary ?opprK //.
  exact: protected_covectors_vanish.
by split=> //; rewrite eq oppr_le0.
Qed.

End Optimality.
