(* Theorem 11: the Riccati recursion solves the damped dense system.

   Stages are counted by what is left: k.+1 layers to go, then k, then 0 at the output. A change u of the parameters of
   a stage and a change x of its input make a change A x + B u of its output. The quadratic model of the loss has
   Hessian H and differential l at the output, and at every stage the blocks Q, M, R of curvature (R with the damping;
   Q = M = 0 for Gauss-Newton and Fisher forms) and the linear term c of what the parameters cost themselves. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Riccati.

Variables (F : fieldType) (n m : nat -> nat).
Variables (A : forall k, 'M[F]_(n k, n k.+1)) (B : forall k, 'M[F]_(n k, m k)).
Variables (Q : forall k, 'M[F]_(n k.+1)) (M : forall k, 'M[F]_(m k, n k.+1)) (R : forall k, 'M[F]_(m k)).
Variables (c : forall k, 'cV[F]_(m k)) (H : 'M[F]_(n 0)) (l : 'cV[F]_(n 0)).

(* The recursion: curvature K and linear term p of the cost to go, for a change of the input of stage k. *)
Definition gain_matrix k (K : 'M[F]_(n k)) := R k + (B k)^T *m K *m B k.
Definition cross_matrix k (K : 'M[F]_(n k)) := M k + (B k)^T *m K *m A k.
Definition cross_matrix_t k (K : 'M[F]_(n k)) := (M k)^T + (A k)^T *m K *m B k.

Fixpoint K k : 'M[F]_(n k) :=
  if k is j.+1 then
    Q j + (A j)^T *m K j *m A j - cross_matrix_t (K j) *m invmx (gain_matrix (K j)) *m cross_matrix (K j)
  else H.

Fixpoint p k : 'cV[F]_(n k) :=
  if k is j.+1 then
    (A j)^T *m p j - cross_matrix_t (K j) *m invmx (gain_matrix (K j)) *m (c j + (B j)^T *m p j)
  else l.

(* The parameters that the recursion chooses at stage k for a change x of its input. *)
Definition control k (x : 'cV[F]_(n k.+1)) : 'cV[F]_(m k) :=
  - (invmx (gain_matrix (K k)) *m (cross_matrix (K k) *m x + (c k + (B k)^T *m p k))).

(* A motion of all parameters at once, and the one that the recursion chooses, rolled out from a change x. *)
Fixpoint controls k : Type := if k is j.+1 then ('cV[F]_(m j) * controls j)%type else unit.

Fixpoint rollout k : 'cV[F]_(n k) -> controls k :=
  if k is j.+1 then fun x => (control x, rollout (A j *m x + B j *m control x)) else fun=> tt.

(* The change of the output. *)
Fixpoint output k : 'cV[F]_(n k) -> controls k -> 'cV[F]_(n 0) :=
  if k is j.+1 then fun x u => output (A j *m x + B j *m u.1) u.2 else fun x _ => x.

(* The dense quadratic model over all parameters, taken at u in the direction v; x and y are the changes of the first
   input that go with them. Its bilinear part is <v, C u> with the dense curvature C, its linear part <v, g>. *)
Fixpoint bilinear_part k : 'cV[F]_(n k) -> 'cV[F]_(n k) -> controls k -> controls k -> F :=
  if k is j.+1 then fun x y u v =>
    pairing v.1 (R j *m u.1 + M j *m x) + pairing y (Q j *m x + (M j)^T *m u.1)
    + bilinear_part (A j *m x + B j *m u.1) (A j *m y + B j *m v.1) u.2 v.2
  else fun x y _ _ => pairing y (H *m x).

Fixpoint linear_part k : 'cV[F]_(n k) -> controls k -> F :=
  if k is j.+1 then fun y v => pairing v.1 (c j) + linear_part (A j *m y + B j *m v.1) v.2
  else fun y _ => pairing y l.

Hypothesis gains_are_invertible : forall k, gain_matrix (K k) \in unitmx.

Lemma control_solves k (x : 'cV[F]_(n k.+1)) :
  gain_matrix (K k) *m control x = - (cross_matrix (K k) *m x + (c k + (B k)^T *m p k)).
Proof. by rewrite /control mulmxN mulKVmx ?gains_are_invertible. Qed.

(* One stage: with Z = K x' + p the costate of the next, the chosen u is stationary, and the costate of this one is
   what comes through its input. *)
Lemma stage k (x : 'cV[F]_(n k.+1)) (u := control x) (Z := K k *m (A k *m x + B k *m u) + p k) :
  (R k *m u + M k *m x + c k + (B k)^T *m Z = 0)
  /\ (Q k *m x + (M k)^T *m u + (A k)^T *m Z = K k.+1 *m x + p k.+1).
Proof.
have solved := control_solves x; rewrite -/u in solved.
have expand q (P : 'M[F]_(q, n k)) : P *m Z = P *m K k *m A k *m x + P *m K k *m B k *m u + P *m p k.
  by rewrite /Z !mulmxDr !mulmxA.
split; rewrite expand.
  move/eqP: solved; rewrite -addr_eq0 !mulmxDl => /eqP <-.
  rewrite [X in _ = _ + X]addrACA [RHS]addrACA -[X in X + _ = _]addrA; congr (_ + _).
  by rewrite -addrA addrCA.
have through : cross_matrix_t (K k) *m u = - (cross_matrix_t (K k) *m invmx (gain_matrix (K k)) *m cross_matrix (K k) *m x)
    - cross_matrix_t (K k) *m invmx (gain_matrix (K k)) *m (c k + (B k)^T *m p k).
  by rewrite {1}/u /control mulmxN mulmxDr mulmxDr opprD !mulmxA.
rewrite [K k.+1]/= [p k.+1]/= mulmxBl mulmxDl [RHS]addrACA -through mulmxDl.
have regroup (q m' a b d : 'cV[F]_(n k.+1)) : q + m' + (a + b + d) = q + a + d + (m' + b).
  by rewrite -[q + a + d]addrA [RHS]addrACA [a + d + b]addrAC.
exact: regroup.
Qed.

(* The costate K x + p: the later stages being stationary, this is what is left of the differential of the model. *)
Lemma costate k (x y : 'cV[F]_(n k)) v :
  bilinear_part x y (rollout x) v + linear_part y v = pairing y (K k *m x + p k).
Proof.
elim: k x y v => [|k IH] x y v; first by rewrite /= -pairingDr.
rewrite [bilinear_part _ _ _ _]/= [linear_part _ _]/=.
have regroup (a b d e f : F) : a + b + d + (e + f) = a + e + (b + (d + f)).
  by rewrite -!addrA; congr (_ + _); rewrite [RHS]addrCA; congr (_ + _); rewrite addrCA.
have pull q (P : 'M[F]_(n k, q)) (z : 'cV_q) w : pairing (P *m z) w = pairing z (P^T *m w).
  by rewrite pairingC pairing_mull pairingC.
rewrite regroup IH pairingDl !pull.
have [stationary <-] := stage x.
by rewrite [X in _ + X = _]addrA [LHS]addrA addrAC -!pairingDr stationary pairing0r add0r.
Qed.

(* Theorem 11. From an unchanged input, the recursion's parameters solve the dense system C u = - g: the differential of
   the quadratic model vanishes at them in every direction. *)
Theorem riccati_solves_the_dense_system k (v : controls k) :
  bilinear_part 0 0 (rollout (0 : 'cV_(n k))) v = - linear_part 0 v.
Proof. by apply/eqP; rewrite -addr_eq0 costate pairing0l. Qed.

(* The damping alone. *)
Fixpoint damping k : controls k -> controls k -> F :=
  if k is j.+1 then fun u v => pairing v.1 (R j *m u.1) + damping u.2 v.2 else fun _ _ => 0.

(* With curvature at the output only, C is the pullback of H along the network, plus the damping: the damped Fisher or
   Gauss-Newton matrix. *)
Lemma curvature_of_the_output k (x y : 'cV[F]_(n k)) u v :
  (forall j, Q j = 0) -> (forall j, M j = 0) ->
  bilinear_part x y u v = pairing (output y v) (H *m output x u) + damping u v.
Proof.
move=> Q0 M0; elim: k x y u v => [|k IH] x y u v /=; first by rewrite addr0.
by rewrite IH Q0 M0 trmx0 !mul0mx !addr0 pairing0r addr0 addrCA.
Qed.

Theorem riccati_is_the_damped_fisher_solve k (u := rollout (0 : 'cV_(n k))) (v : controls k) :
  (forall j, Q j = 0) -> (forall j, M j = 0) -> (forall j, c j = 0) ->
  pairing (output 0 v) (H *m output 0 u) + damping u v = - pairing (output 0 v) l.
Proof.
move=> Q0 M0 c0; rewrite -curvature_of_the_output // riccati_solves_the_dense_system; congr (- _).
elim: k v (0 : 'cV_(n k)) {u} => [|k IH] v y //=.
by rewrite IH c0 pairing0r add0r.
Qed.

End Riccati.
