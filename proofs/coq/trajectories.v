(* Theorem 3: whole K-FAC trajectories do not depend on affine frames.

   A network is a chain of layers 0, 1, ..., L. Activations of layer l are points of an affine space: vectors of the
   hull, of dimension a l, on which the functional `one l` is 1. A weight is a matrix from the hull to the
   pre-activations, so the bias is inside. Any function may stand between layers; its Jacobian is given beside it.

   A frame changes the hull of every activation space by an invertible alpha l, and every pre-activation space by the
   affine map s |-> Phi l s + tau l. The twin is the same network in these frames:
       phi' = alpha o phi o sigma^-1,   D phi' = alpha D phi Phi^-1,   one' = one o alpha^-1,   W' = sigma o W o alpha^-1. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Networks.

Variables (F : fieldType) (a s : nat -> nat).

Definition weights := forall l, 'M[F]_(s l, a l).

Record network := Network {
  one : forall l, 'rV[F]_(a l);
  activation : forall l, 'cV[F]_(s l) -> 'cV[F]_(a l.+1);
  jacobian : forall l, 'cV[F]_(s l) -> 'M[F]_(a l.+1, s l)
}.

Record frames := Frames {
  alpha : forall l, 'M[F]_(a l);
  Phi : forall l, 'M[F]_(s l);
  tau : forall l, 'cV[F]_(s l)
}.

(* Forward: inputs of layer l, and its pre-activation. *)
Fixpoint input (N : network) (W : weights) (x : 'cV[F]_(a 0)) l : 'cV[F]_(a l) :=
  if l is k.+1 then activation N (W k *m input N W x k) else x.

Definition preactivation N W x l := W l *m input N W x l.

(* Backward from layer k + l down to layer l: g at layer m.+1 becomes (W (m.+1) (D phi m))^T g at layer m. *)
Fixpoint backward (N : network) (W : weights) (x : 'cV[F]_(a 0)) l k : 'cV[F]_(s (k + l)) -> 'cV[F]_(s l) :=
  if k is j.+1 then fun g => backward N W x ((W (j + l).+1 *m jacobian N (preactivation N W x (j + l)))^T *m g)
  else id.

(* The cotangent of layer l when layer L is the last: L - l + l = L, so that `top` is asked for at the output only. *)
Definition cotangent N W x (top : forall m, 'cV[F]_(s m) -> 'cV[F]_(s m)) L l :=
  backward N W x (top (L - l + l)%N (preactivation N W x (L - l + l))).

(* The twin. *)
Definition sigma (r : frames) l z := Phi r l *m z + tau r l.
Definition sigma_inverse (r : frames) l z := invmx (Phi r l) *m (z - tau r l).

Definition twin (r : frames) (N : network) := Network
  (fun l => one N l *m invmx (alpha r l))
  (fun l z => alpha r l.+1 *m activation N (sigma_inverse r z))
  (fun l z => alpha r l.+1 *m jacobian N (sigma_inverse r z) *m invmx (Phi r l)).

Definition twin_weights (r : frames) (N : network) (W : weights) : weights :=
  fun l => (Phi r l *m W l + tau r l *m one N l) *m invmx (alpha r l).

Definition twin_top (r : frames) (top : forall m, 'cV[F]_(s m) -> 'cV[F]_(s m)) m z :=
  contragredient (Phi r m) *m top m (sigma_inverse r z).

Variables (r : frames) (N : network).
Hypothesis alpha_invertible : forall l, alpha r l \in unitmx.
Hypothesis Phi_invertible : forall l, Phi r l \in unitmx.
Hypothesis activations_are_points : forall l z, one N l.+1 *m activation N (l := l) z = 1%:M.

Lemma sigmaK l z : sigma_inverse r (sigma r z) = z :> 'cV_(s l).
Proof. by rewrite /sigma_inverse /sigma addrK mulKmx. Qed.

Section OneExample.

Variables (W : weights) (x : 'cV[F]_(a 0)).
Hypothesis input_is_a_point : one N 0 *m x = 1%:M.

Local Notation W' := (twin_weights r N W).
Local Notation x' := (alpha r 0 *m x).

Lemma inputs_are_points l : one N l *m input N W x l = 1%:M.
Proof. by case: l => [|l] //=. Qed.

(* If an input moves by alpha, its pre-activation moves by sigma. *)
Lemma layer_of_twin l z : one N l *m z = 1%:M -> W' l *m (alpha r l *m z) = sigma r (W l *m z).
Proof.
move=> point; rewrite /twin_weights mulmxA mulmxKV // mulmxDl /sigma -!mulmxA point mulmx1.
by [].
Qed.

(* The chain rule, forward: inputs of the twin's layers are the inputs, moved by alpha... *)
Theorem inputs_of_twin l : input (twin r N) W' x' l = alpha r l *m input N W x l.
Proof.
elim: l => [|l IH] //=; rewrite IH layer_of_twin ?inputs_are_points //.
by rewrite sigmaK.
Qed.

(* ... and pre-activations, with them the outputs, by sigma. *)
Theorem preactivations_of_twin l : preactivation (twin r N) W' x' l = sigma r (preactivation N W x l).
Proof. by rewrite /preactivation inputs_of_twin layer_of_twin ?inputs_are_points. Qed.

(* The Jacobian of a hull-valued activation has values in translations: the functional 1 vanishes on them. *)
Hypothesis jacobians_are_translations : forall l z, one N l.+1 *m jacobian N (l := l) z = 0.

(* The chain rule, backward, by induction on the layers above: cotangents move by the inverse transpose. *)
Lemma backward_of_twin l k (g : 'cV[F]_(s (k + l))) :
  backward (twin r N) W' x' (contragredient (Phi r (k + l)) *m g) = contragredient (Phi r l) *m backward N W x g.
Proof.
elim: k g => [|k IH] g //=; rewrite -IH; congr (backward _ _ _ _).
rewrite preactivations_of_twin sigmaK /twin_weights !mulmxA mulmxKV // !mulmxDl -!mulmxA.
rewrite [one N _ *m _]mulmxA jacobians_are_translations mul0mx mulmx0 addr0.
rewrite !trmx_mul -!mulmxA [(Phi r _)^T *m _]mulmxA.
by rewrite (contragredient_left (Phi_invertible (k + l).+1)) mul1mx.
Qed.

Theorem cotangents_of_twin top L l :
  cotangent (twin r N) W' x' (twin_top r top) L l = contragredient (Phi r l) *m cotangent N W x top L l.
Proof. by rewrite /cotangent /twin_top preactivations_of_twin sigmaK backward_of_twin. Qed.

End OneExample.

(* Nothing depends on how a family of weights is written, only on its members. *)
Lemma input_ext (M : network) (W V : weights) x : (forall l, W l = V l) -> forall l, input M W x l = input M V x l.
Proof. by move=> same; elim=> [|l IH] //=; rewrite IH same. Qed.

Lemma preactivation_ext (M : network) (W V : weights) x l :
  (forall m, W m = V m) -> preactivation M W x l = preactivation M V x l.
Proof. by move=> same; rewrite /preactivation same (input_ext M x same). Qed.

Lemma cotangent_ext (M : network) (W V : weights) x top L l :
  (forall m, W m = V m) -> cotangent M W x top L l = cotangent M V x top L l.
Proof.
move=> same; rewrite /cotangent (preactivation_ext _ _ _ same).
elim: (L - l)%N (top _ _) => [|k IH] g //=.
by rewrite same (preactivation_ext _ _ _ same) IH.
Qed.

(* What a step sees: weighted examples, the differential of each one's loss at the output, labels drawn from the model
   (their probability may depend on the output) with the differential of their own loss; and reference forms by which
   the factors are damped. Their weights gamma and kappa are 0 in the undamped method. *)
Record batch := Batch {
  examples : finType;
  labels : finType;
  share : examples -> F;
  example : examples -> 'cV[F]_(a 0);
  loss : examples -> forall m, 'cV[F]_(s m) -> 'cV[F]_(s m);
  probability : examples -> labels -> forall m, 'cV[F]_(s m) -> F;
  score : examples -> labels -> forall m, 'cV[F]_(s m) -> 'cV[F]_(s m);
  reference_A : forall l, 'M[F]_(a l);
  reference_G : forall l, 'M[F]_(s l);
  kappa : F;
  gamma : F;
  rate : F
}.

Definition twin_batch (B : batch) := @Batch (examples B) (labels B) (@share B)
  (fun i => alpha r 0 *m example i)
  (fun i => twin_top r (loss i))
  (fun i k m z => probability i k (sigma_inverse r z))
  (fun i k => twin_top r (score i k))
  (fun l => alpha r l *m reference_A B l *m (alpha r l)^T)
  (fun l => contragredient (Phi r l) *m reference_G B l *m invmx (Phi r l))
  (kappa B) (gamma B) (rate B).

Variable L : nat.

Definition factor_A M (W : weights) (B : batch) l :=
  second_moment (@share B) (fun i => input M W (example i) l) + kappa B *: reference_A B l.

Definition factor_G M (W : weights) (B : batch) l :=
  second_moment (fun ik : examples B * labels B =>
      share ik.1 * probability ik.1 ik.2 (preactivation M W (example ik.1) L))
    (fun ik => cotangent M W (example ik.1) (score ik.1 ik.2) L l)
  + gamma B *: reference_G B l.

Definition differential M (W : weights) (B : batch) l :=
  \sum_(i : examples B) share i *: (cotangent M W (example i) (loss i) L l *m (input M W (example i) l)^T).

(* One step of K-FAC. *)
Definition update M (B : batch) (W : weights) : weights := fun l =>
  if (l <= L)%N then W l - rate B *: kfac_sharp (factor_G M W B l) (factor_A M W B l) (differential M W B l) else W l.

Hypothesis jacobians_are_translations : forall l z, one N l.+1 *m jacobian N (l := l) z = 0.

Section OneStep.

Variables (W : weights) (B : batch).
Hypothesis examples_are_points : forall i : examples B, one N 0 *m example i = 1%:M.

Local Notation W' := (twin_weights r N W).

Lemma factor_A_of_twin l :
  factor_A (twin r N) W' (twin_batch B) l = alpha r l *m factor_A N W B l *m (alpha r l)^T.
Proof.
rewrite /factor_A mulmxDr mulmxDl -scalemxAr -scalemxAl -moment_moves; congr (_ + _).
by apply: eq_bigr => i _; rewrite inputs_of_twin.
Qed.

Lemma factor_G_of_twin l :
  factor_G (twin r N) W' (twin_batch B) l = contragredient (Phi r l) *m factor_G N W B l *m invmx (Phi r l).
Proof.
rewrite /factor_G mulmxDr mulmxDl -scalemxAr -scalemxAl; congr (_ + _).
rewrite -[invmx _]trmxK -/(contragredient _) -moment_moves; apply: eq_bigr => -[i k] _ /=.
by rewrite preactivations_of_twin // sigmaK cotangents_of_twin.
Qed.

Lemma differential_of_twin l :
  differential (twin r N) W' (twin_batch B) l = contragredient (Phi r l) *m differential N W B l *m (alpha r l)^T.
Proof.
rewrite /differential mulmx_sumr mulmx_suml; apply: eq_bigr => i _ /=.
by rewrite cotangents_of_twin // inputs_of_twin // -scalemxAr -scalemxAl trmx_mul !mulmxA.
Qed.

Definition regular := forall l, (l <= L)%N -> factor_A N W B l \in unitmx /\ factor_G N W B l \in unitmx.

(* A step in the twin is the twin of the step. The bias part tau moves points only: it cancels in the difference. *)
Theorem update_of_twin : regular -> forall l,
  update (twin r N) (twin_batch B) W' l = twin_weights r N (update N B W) l.
Proof.
move=> reg l; rewrite /twin_weights /update; case: leqP => [lL|_]; last by [].
have [uA uG] := reg l lL.
rewrite factor_A_of_twin factor_G_of_twin differential_of_twin kfac_sharp_is_natural //.
move: (kfac_sharp _ _ _) => step; change (rate (twin_batch B)) with (rate B).
rewrite mulmxBr -scalemxAr [in RHS]addrAC [RHS]mulmxBl -[in RHS]scalemxAl.
by [].
Qed.

End OneStep.

Lemma update_ext M B (W V : weights) : (forall l, W l = V l) -> forall l, update M B W l = update M B V l.
Proof.
move=> same l; rewrite /update; case: leqP => [_|_]; last exact: same.
have -> : factor_A M W B l = factor_A M V B l.
  by rewrite /factor_A; congr (_ + _); apply: eq_bigr => i _; rewrite (input_ext M _ same).
have -> : factor_G M W B l = factor_G M V B l.
  rewrite /factor_G; congr (_ + _); apply: eq_bigr => ik _.
  by rewrite (preactivation_ext M _ _ same) (cotangent_ext M _ _ _ _ same).
have -> : differential M W B l = differential M V B l.
  by apply: eq_bigr => i _; rewrite (input_ext M _ same) (cotangent_ext M _ _ _ _ same).
by congr (_ - _); apply: same.
Qed.

(* A run: batch t at step t, with its own step size and damping. *)
Fixpoint run M (batches : nat -> batch) (W : weights) t : weights :=
  if t is u.+1 then update M (batches u) (run M batches W u) else W.

Variables (batches : nat -> batch) (W : weights).
Hypothesis examples_are_points : forall t (i : examples (batches t)), one N 0 *m example i = 1%:M.
Hypothesis factors_are_invertible : forall t, regular (run N batches W t) (batches t).

Theorem weights_of_the_twin_run t l :
  run (twin r N) (fun u => twin_batch (batches u)) (twin_weights r N W) t l
  = twin_weights r N (run N batches W t) l.
Proof.
elim: t l => [|t IH] l //=.
by rewrite (update_ext _ _ IH) update_of_twin.
Qed.

(* Theorem 3. After any number of steps the twin computes the same function: its output at the moved input is the
   moved output. *)
Theorem kfac_trajectory_is_invariant t (x : 'cV[F]_(a 0)) : one N 0 *m x = 1%:M ->
  preactivation (twin r N) (run (twin r N) (fun u => twin_batch (batches u)) (twin_weights r N W) t)
    (alpha r 0 *m x) L
  = sigma r (preactivation N (run N batches W t) x L).
Proof.
move=> point; rewrite (preactivation_ext _ _ _ (weights_of_the_twin_run t)).
exact: preactivations_of_twin.
Qed.

End Networks.
