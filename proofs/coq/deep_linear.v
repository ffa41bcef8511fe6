(* Theorem 7: exact natural gradient of deep linear networks y = W x + noise, W = W_L ... W_1, with noise of precision
   P = Sigma^-1 and inputs of second moment S.

   U i is the product of the layers above layer i, D i of those below. Moving the layers by V_i moves W by
   J V = sum_i U_i V_i D_i. The Fisher is J^T (P (x) S) J, and the differential of the loss is J^T (P M S) with
   M = W - W*, where W* is the solution. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Layers.

Variables (F : fieldType) (L : nat) (m n : nat) (u d : 'I_L -> nat).
Variables (U : forall i, 'M[F]_(m, u i)) (D : forall i, 'M[F]_(d i, n)).
Variables (P : 'M[F]_m) (S : 'M[F]_n) (M : 'M[F]_(m, n)).

Definition parameters := forall i, 'M[F]_(u i, d i).

(* Motion of the product, Fisher, differential of the loss. *)
Definition J (V : parameters) : 'M[F]_(m, n) := \sum_i U i *m V i *m D i.
Definition Jt (X : 'M[F]_(m, n)) : parameters := fun i => (U i)^T *m X *m (D i)^T.
Definition fisher (V : parameters) : parameters := Jt (P *m J V *m S).
Definition differential : parameters := Jt (P *m M *m S).

(* Jt is the transpose of J, so that this is the pullback of P (x) S along J. *)
Lemma Jt_is_the_transpose X V : pairing X (J V) = \sum_i pairing (Jt X i) (V i).
Proof. by rewrite /J pairing_sumr; apply: eq_bigr => i _; rewrite pairing_mulr pairing_mull mulmxA. Qed.

(* Two parameter motions with the same motion of the product have the same Fisher flat. *)
Lemma fisher_sees_the_product_only V i : J V = M -> fisher V i = differential i.
Proof. by rewrite /fisher /differential => ->. Qed.

(* Every U has full row rank and every D full column rank: they have a right and a left inverse. *)
Section FullRank.

Variables (Ur : forall i, 'M[F]_(u i, m)) (Dl : forall i, 'M[F]_(n, d i)).
Hypothesis U_full_row_rank : forall i, U i *m Ur i = 1%:M.
Hypothesis D_full_column_rank : forall i, Dl i *m D i = 1%:M.
Hypothesis L_is_not_zero : L%:R != 0 :> F.

Definition exact_step : parameters := fun i => L%:R^-1 *: (Ur i *m M *m Dl i).

(* The product moves straight to the solution... *)
Theorem exact_step_moves_the_product_by_M : J exact_step = M.
Proof.
rewrite /J /exact_step (eq_bigr (fun=> L%:R^-1 *: M)) => [|i _].
  by rewrite sumr_const card_ord -scaler_nat scalerA divff // scale1r.
by rewrite -scalemxAr -scalemxAl !mulmxA U_full_row_rank mul1mx -mulmxA D_full_column_rank mulmx1.
Qed.

(* ... so v = (1/L) U^+ M D^+ solves F v = dL exactly, across layers. *)
Theorem exact_step_solves_the_fisher i : fisher exact_step i = differential i.
Proof. exact: fisher_sees_the_product_only exact_step_moves_the_product_by_M. Qed.

(* Natural gradient layer by layer, which is K-FAC here, has no 1/L: it overshoots exactly L times. *)
Theorem layerwise_step_overshoots : J (fun i => Ur i *m M *m Dl i) = L%:R *: M.
Proof.
rewrite -[in RHS]exact_step_moves_the_product_by_M /J scaler_sumr; apply: eq_bigr => i _.
by rewrite /exact_step -scalemxAr -scalemxAl scalerA divff // scale1r.
Qed.

(* The block of the layerwise Fisher that this step solves. *)
Theorem layerwise_step_solves_its_block i (v := Ur i *m M *m Dl i) :
  (U i)^T *m (P *m (U i *m v *m D i) *m S) *m (D i)^T = differential i.
Proof.
suff -> : U i *m v *m D i = M by [].
by rewrite /v !mulmxA U_full_row_rank mul1mx -mulmxA D_full_column_rank mulmx1.
Qed.

End FullRank.

(* Bottlenecks. Let Pi i project on the range of U_i, self-adjoint for P and growing with i, and Q i on the row space of
   D_i, self-adjoint for S and shrinking. Then the exact step still has a closed form, and the product moves by
   sum_i (Pi_i - Pi_(i-1)) M Q_i. *)
Section Bottleneck.

Variables (Ur : forall i, 'M[F]_(u i, m)) (Dl : forall i, 'M[F]_(n, d i)).

(* The projectors factor through the layers. *)
Variables (Pi : 'I_L -> 'M[F]_m) (Q : 'I_L -> 'M[F]_n).
Hypothesis Pi_through_U : forall i, U i *m Ur i = Pi i.
Hypothesis Q_through_D : forall i, Dl i *m D i = Q i.

(* The projector before layer i: that of layer i - 1, and zero before the first. *)
Variable before : 'I_L -> 'M[F]_m.
Hypothesis before_first : forall i : 'I_L, i = 0%N :> nat -> before i = 0.
Hypothesis before_next : forall i j : 'I_L, j = i.+1 :> nat -> before j = Pi i.

Hypothesis Pi_projects : forall i, Pi i *m U i = U i.
Hypothesis Pi_self_adjoint : forall i, P *m Pi i = (Pi i)^T *m P.
Hypothesis Pi_grows : forall i j : 'I_L, (i <= j)%N -> Pi j *m Pi i = Pi i /\ Pi i *m Pi j = Pi i.
Hypothesis Q_projects : forall i, D i *m Q i = D i.
Hypothesis Q_self_adjoint : forall i, Q i *m S = S *m (Q i)^T.
Hypothesis Q_shrinks : forall i j : 'I_L, (i <= j)%N -> Q i *m Q j = Q j.

Definition bottleneck_step : parameters := fun i => Ur i *m (Pi i - before i) *m M *m Dl i.

(* The projector before a layer is that of an earlier layer, or zero. *)
Lemma before_cases (i : 'I_L) :
  (i = 0%N :> nat /\ before i = 0) \/ exists2 j : 'I_L, i = j.+1 :> nat & before i = Pi j.
Proof.
case: (posnP i) => [i0 | ipos]; first by left; rewrite before_first.
have lt : (i.-1 < L)%N by rewrite (leq_ltn_trans (leq_pred i)).
right; exists (Ordinal lt); first by rewrite /= prednK.
by apply: before_next; rewrite /= prednK.
Qed.

Lemma before_is_smaller i : Pi i *m before i = before i.
Proof.
case: (before_cases i) => [[_ ->] | [j ij ->]]; first by rewrite mulmx0.
have ji : (j <= i)%N by rewrite ij.
by have [] := Pi_grows ji.
Qed.

Theorem bottleneck_step_moves_the_product : J bottleneck_step = \sum_i (Pi i - before i) *m M *m Q i.
Proof.
apply: eq_bigr => i _; rewrite /bottleneck_step !mulmxA Pi_through_U -(mulmxA _ (Dl i)) Q_through_D mulmxBr before_is_smaller.
by have [-> _] := @Pi_grows i i (leqnn i).
Qed.

Lemma telescope (k : 'I_L) : \sum_(i < L | (i <= k)%N) (Pi i - before i) = Pi k.
Proof.
case: k => k; elim: k => [|k IH] kL.
  rewrite (big_pred1 (Ordinal kL)) => [|i]; first by rewrite before_first // subr0.
  by rewrite /= leqn0; apply/eqP/eqP => [e | ->] //; apply: val_inj.
rewrite (bigD1 (Ordinal kL)) //= (eq_bigl (fun i : 'I_L => (i <= k)%N)) => [|i].
  by rewrite (IH (ltnW kL)) (@before_next (Ordinal (ltnW kL))) // subrK.
by rewrite -val_eqE /= andbC -ltn_neqAle ltnS.
Qed.

(* Seen from layer k: later terms vanish, earlier ones telescope. *)
Lemma projected_motion k : Pi k *m J bottleneck_step *m Q k = Pi k *m M *m Q k.
Proof.
rewrite bottleneck_step_moves_the_product mulmx_sumr mulmx_suml (bigID (fun i : 'I_L => (i <= k)%N)) /=.
rewrite [X in _ + X]big1 ?addr0 => [|i]; last first.
  rewrite -ltnNge => ki; rewrite !mulmxA mulmxBr; have [_ ->] := Pi_grows (ltnW ki).
  case: (before_cases i) => [[i0 _] | [j ij ->]]; first by rewrite i0 in ki.
  have kj : (k <= j)%N by rewrite -ltnS -ij.
  by have [_ ->] := Pi_grows kj; rewrite subrr !mul0mx.
rewrite (eq_bigr (fun i => (Pi i - before i) *m (M *m Q k))) => [|i ik].
  by rewrite -mulmx_suml telescope mulmxA.
rewrite !mulmxA -(mulmxA _ (Q i)) Q_shrinks // mulmxBr; have [-> _] := Pi_grows ik.
suff -> : Pi k *m before i = before i by rewrite -!mulmxA.
case: (before_cases i) => [[_ ->] | [j ij ->]]; first by rewrite mulmx0.
have jk : (j <= k)%N by rewrite (leq_trans _ ik) // ij.
by have [] := Pi_grows jk.
Qed.

(* One exact natural gradient, bottleneck or not. *)
Theorem bottleneck_step_solves_the_fisher k : fisher bottleneck_step k = differential k.
Proof.
rewrite /fisher /differential /Jt.
have left : (U k)^T *m P = (U k)^T *m P *m Pi k.
  by rewrite -mulmxA Pi_self_adjoint mulmxA -trmx_mul Pi_projects.
have right : S *m (D k)^T = Q k *m (S *m (D k)^T).
  by rewrite mulmxA Q_self_adjoint -mulmxA -trmx_mul Q_projects.
have projected Y : (U k)^T *m (P *m Y *m S) *m (D k)^T
    = (U k)^T *m P *m (Pi k *m Y *m Q k) *m (S *m (D k)^T).
  transitivity ((U k)^T *m P *m Y *m (S *m (D k)^T)); first by rewrite !mulmxA.
  by rewrite [in LHS]left [in LHS]right !mulmxA.
by rewrite !projected projected_motion.
Qed.

End Bottleneck.

End Layers.

(* Square, invertible factors: the discrete step in closed form. *)
Section DiscreteStep.

Variables (F : fieldType) (n L : nat) (W : nat -> 'M[F]_n).
Hypothesis W_invertible : forall i, W i \in unitmx.
Variables (M : 'M[F]_n) (eta : F).

(* The product of the first i factors, and of those above. *)
Fixpoint product (V : nat -> 'M[F]_n) i := if i is j.+1 then V j *m product V j else 1%:M.
Definition total := product W L.
Definition above i := total *m invmx (product W i.+1).

Definition exact_update i := W i - (eta / L%:R) *: (invmx (above i) *m M *m invmx (product W i)).

Lemma product_invertible i : product W i \in unitmx.
Proof. by elim: i => [|i IH] /=; rewrite ?unitmx1 // unitmx_mul W_invertible. Qed.

(* `above` is the product of the layers above indeed. *)
Lemma above_times_layer_times_below i : above i *m W i *m product W i = total.
Proof. by rewrite /above -!mulmxA -/(product W i.+1) mulVmx ?product_invertible ?mulmx1. Qed.

Fixpoint power (X : 'M[F]_n) k := if k is j.+1 then X *m power X j else 1%:M.

Definition contraction := 1%:M - (eta / L%:R) *: (M *m invmx total).

Lemma partial_products i :
  product exact_update i = product W i *m invmx total *m power contraction i *m total.
Proof.
have ut := product_invertible L.
elim: i => [|i IH] /=; first by rewrite mul1mx mulmx1 mulVmx.
rewrite IH !mulmxA; congr (_ *m _); congr (_ *m _).
have -> : exact_update i *m product W i = product W i.+1 *m invmx total *m contraction *m total.
  rewrite /exact_update /contraction mulmxBl -scalemxAl mulmxKV ?product_invertible //.
  rewrite mulmxBr mulmx1 mulmxBl mulmxKV // -scalemxAr -scalemxAl; congr (_ - _ *: _).
  rewrite /above inverse_of_product ?unitmx_inv ?product_invertible // invmxK.
  by rewrite !mulmxA mulmxKV.
by rewrite mulmxK.
Qed.

(* W+ = (I - (eta/L) M W^-1)^L W. *)
Theorem discrete_product_formula : product exact_update L = power contraction L *m total.
Proof. by rewrite partial_products mulmxV ?product_invertible ?mul1mx. Qed.

End DiscreteStep.

(* One layer: the distance to the solution shrinks by 1 - eta exactly, whatever the inputs and the noise. *)
Theorem one_layer_rate (F : fieldType) n (W Wstar : 'M[F]_n) eta :
  W \in unitmx -> product (exact_update 1 (fun=> W) (W - Wstar) eta) 1 - Wstar = (1 - eta) *: (W - Wstar).
Proof.
move=> uW; rewrite /= mulmx1 /exact_update /above /total /= !mulmx1 mulmxV //.
by rewrite invmx1 mul1mx mulmx1 divr1 scalerBl scale1r addrAC.
Qed.
