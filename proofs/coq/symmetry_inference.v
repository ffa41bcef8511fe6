(* Theorem 15: what the static rule claims, the update has; what a constant named in the expression moves, the update
   loses.

   An expression is a term over variables, which move with the frames (samples, moments, differentials), and constants,
   which do not (the identity matrix, a basis, an origin). A tensor has two indices, each a space and a variance; a
   frame r moves it by M |-> rho(kappa) M rho(lambda)^T, where rho is r on upper and r^-T on lower indices. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries tensors.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Terms.

Variables (F : fieldType) (space : Type) (dim : space -> nat).
Local Notation index := (tensors.index space).
Local Notation tensor := (tensors.tensor F dim).
Local Notation frame := (tensors.frame F dim).

(* Names of variables and of constants, each with its type; and primitives (matrix roots relative to a form, the matrix
   sign, k steps of conjugate gradients ...), each with its types, its domain and what it computes. *)
Variables (variable constant primitive : Type).
Variables (vrow vcol : variable -> index) (crow ccol : constant -> index).
Variables (argument : primitive -> Type) (arow acol : forall p, argument p -> index) (prow pcol : primitive -> index).

Definition arguments p := forall i : argument p, tensor (arow i) (acol i).

Variables (domain : forall p, arguments p -> Prop).
Variables (compute : forall p, arguments p -> tensor (prow p) (pcol p)).

(* The one obligation of a primitive: on its domain it commutes with frames. (It may look at its arguments only.) *)
Hypothesis domain_ext : forall p (x y : arguments p), (forall i, x i = y i) -> domain x -> domain y.
Hypothesis compute_ext : forall p (x y : arguments p), (forall i, x i = y i) -> compute x = compute y.
Hypothesis primitives_are_natural : forall p (r : frame) (x : arguments p), domain x ->
  domain (fun i => act r (x i)) /\ compute (fun i => act r (x i)) = act r (compute x).

Inductive term : index -> index -> Type :=
| Var v : term (vrow v) (vcol v)
| Cst c : term (crow c) (ccol c)
| Add kappa lambda : term kappa lambda -> term kappa lambda -> term kappa lambda
| Scale kappa lambda : F -> term kappa lambda -> term kappa lambda
| Mul kappa mu lambda : term kappa mu -> term (dual mu) lambda -> term kappa lambda
| Tr kappa lambda : term kappa lambda -> term lambda kappa
| Inv X b c : term (X, b) (X, c) -> term (X, ~~ c) (X, ~~ b)
| Prim p : (forall i : argument p, term (arow i) (acol i)) -> term (prow p) (pcol p).

Definition values := forall v, tensor (vrow v) (vcol v).
Definition constants := forall c, tensor (crow c) (ccol c).

Definition move_values (r : frame) (x : values) : values := fun v => act r (x v).
Definition move_constants (r : frame) (w : constants) : constants := fun c => act r (w c).

(* The value of a term, and whether it is defined: every matrix that is inverted is invertible, every primitive is used
   on its domain. *)
Fixpoint eval (x : values) (w : constants) kappa lambda (t : term kappa lambda) : tensor kappa lambda :=
  match t with
  | Var v => x v
  | Cst c => w c
  | Add _ _ t u => eval x w t + eval x w u
  | Scale _ _ k t => k *: eval x w t
  | Mul _ _ _ t u => eval x w t *m eval x w u
  | Tr _ _ t => (eval x w t)^T
  | Inv _ _ _ t => invmx (eval x w t)
  | Prim p a => compute (fun i => eval x w (a i))
  end.

Fixpoint defined (x : values) (w : constants) kappa lambda (t : term kappa lambda) : Prop :=
  match t with
  | Var _ | Cst _ => True
  | Add _ _ t u => defined x w t /\ defined x w u
  | Scale _ _ _ t => defined x w t
  | Mul _ _ _ t u => defined x w t /\ defined x w u
  | Tr _ _ t => defined x w t
  | Inv _ _ _ t => defined x w t /\ eval x w t \in unitmx
  | Prim p a => (forall i, defined x w (a i)) /\ domain (fun i => eval x w (a i))
  end.

(* Naturality: if the constants move too, the value moves along. *)
Theorem natural r x w kappa lambda (t : term kappa lambda) : defined x w t ->
  defined (move_values r x) (move_constants r w) t
  /\ eval (move_values r x) (move_constants r w) t = act r (eval x w t).
Proof.
elim: t => [v|c|k l t IHt u IHu|k l z t IHt|k m l t IHt u IHu|k l t IHt|X b c t IHt|p a IHa] //=.
- by case=> /IHt[dt ->] /IHu[du ->]; rewrite act_add.
- by move=> /IHt[dt ->]; rewrite act_scale.
- by case=> /IHt[dt ->] /IHu[du ->]; rewrite act_contract.
- by move=> /IHt[dt ->]; rewrite act_transpose.
- by case=> /IHt[dt ->] ut; rewrite act_unit ut act_inverse.
case=> da dom; have [ddom ecomp] := primitives_are_natural r dom.
have ea i : eval (move_values r x) (move_constants r w) (a i) = act r (eval x w (a i)) by case: (IHa i (da i)).
split; last by rewrite -ecomp; apply: compute_ext.
split=> [i|]; first by case: (IHa i (da i)).
by apply: domain_ext ddom => i; rewrite ea.
Qed.

Lemma eval_ext x y w z kappa lambda (t : term kappa lambda) :
  (forall v, x v = y v) -> (forall c, w c = z c) -> eval x w t = eval y z t.
Proof.
move=> exy ewz.
elim: t => [v|c|k l t IHt u IHu|k l s t IHt|k m l t IHt u IHu|k l t IHt|X b c t IHt|p a IHa] //=;
  rewrite ?IHt ?IHu //; exact: compute_ext.
Qed.

Lemma defined_ext x y w z kappa lambda (t : term kappa lambda) :
  (forall v, x v = y v) -> (forall c, w c = z c) -> defined x w t -> defined y z t.
Proof.
move=> exy ewz.
elim: t => [v|c|k l t IHt u IHu|k l s t IHt|k m l t IHt u IHu|k l t IHt|X b c t IHt|p a IHa] //=.
- by case=> /IHt ? /IHu.
- by case=> /IHt ? /IHu.
- by case=> /IHt dt ut; rewrite -(eval_ext t exy ewz).
case=> da dom; split=> [i|]; first exact: IHa.
by apply: domain_ext dom => i; apply: eval_ext.
Qed.

Lemma move_values_undo r x v : move_values r (move_values (undo r) x) v = x v.
Proof. exact: act_undo. Qed.

Lemma move_constants_undo r w c : move_constants (undo r) (move_constants r w) c = w c.
Proof. exact: undo_act. Qed.

Lemma move_values_redo r x v : move_values (undo r) (move_values r x) v = x v.
Proof. exact: undo_act. Qed.

(* Definedness moves both ways. *)
Lemma defined_moves r x w kappa lambda (t : term kappa lambda) :
  defined x w t <-> defined (move_values r x) (move_constants r w) t.
Proof.
split=> [d | d]; first by case: (natural r d).
have [d' _] := natural (undo r) d.
exact: defined_ext (move_values_redo r x) (move_constants_undo r w) d'.
Qed.

(* The constants that a term names. *)
Fixpoint names (c : constant) kappa lambda (t : term kappa lambda) : Prop :=
  match t with
  | Var _ => False
  | Cst d => c = d
  | Add _ _ t u => names c t \/ names c u
  | Scale _ _ _ t => names c t
  | Mul _ _ _ t u => names c t \/ names c u
  | Tr _ _ t => names c t
  | Inv _ _ _ t => names c t
  | Prim p a => exists i, names c (a i)
  end.

Lemma only_named_constants_matter x w z kappa lambda (t : term kappa lambda) :
  (forall c, names c t -> w c = z c) ->
  eval x w t = eval x z t /\ (defined x w t -> defined x z t).
Proof.
elim: t => [v|c|k l t IHt u IHu|k l s t IHt|k m l t IHt u IHu|k l t IHt|X b c t IHt|p a IHa] //= same.
- by split=> //; apply: same.
- have [|-> dt] := IHt _; first by move=> c n; apply: same; left.
  have [|-> du] := IHu _; first by move=> c n; apply: same; right.
  by split=> // -[/dt ? /du].
- by have [-> dt] := IHt same.
- have [|-> dt] := IHt _; first by move=> c n; apply: same; left.
  have [|-> du] := IHu _; first by move=> c n; apply: same; right.
  by split=> // -[/dt ? /du].
- by have [-> dt] := IHt same.
- by have [e dt] := IHt same; rewrite e; split=> // -[/dt ? ?].
have each i : eval x w (a i) = eval x z (a i) /\ (defined x w (a i) -> defined x z (a i)).
  by apply: IHa => c n; apply: same; exists i.
split; first by apply: compute_ext => i; case: (each i).
case=> da dom; split=> [i|]; first by case: (each i) => _; apply.
by apply: domain_ext dom => i; case: (each i).
Qed.

(* What the update has: it commutes with r although the constants stay. *)
Definition symmetry (w : constants) (r : frame) kappa lambda (t : term kappa lambda) := forall x,
  (defined x w t <-> defined (move_values r x) w t)
  /\ (defined x w t -> eval (move_values r x) w t = act r (eval x w t)).

(* What the expression cannot see: that its constants move. *)
Definition blind (w : constants) (r : frame) kappa lambda (t : term kappa lambda) := forall x,
  (defined x w t <-> defined x (move_constants r w) t)
  /\ (defined x w t -> eval x (move_constants r w) t = eval x w t).

(* Exactness: the symmetries are exactly the frames whose motion of the constants the expression cannot see. *)
Theorem exactness w r kappa lambda (t : term kappa lambda) : symmetry w r t <-> blind w r t.
Proof.
split=> [sym x | bl x].
  pose y := move_values (undo r) x.
  have yx v : move_values r y v = x v by apply: move_values_undo.
  have [dsym esym] := sym y.
  have dy : defined x w t <-> defined y w t.
    rewrite dsym; split; apply: defined_ext => // v; by rewrite yx.
  split.
    rewrite dy (defined_moves r); split; apply: defined_ext => // v; by rewrite yx.
  move=> /dy d; have [_ en] := natural r d.
  rewrite -(eval_ext t yx (fun=> erefl)) en -esym //.
  exact: eval_ext.
have [dbl ebl] := bl (move_values r x).
split; first by rewrite (defined_moves r) dbl.
move=> d; have [dn en] := natural r d.
by rewrite -en ebl //; apply/dbl.
Qed.

(* Soundness of the meet: fixing every named constant is enough. *)
Theorem meet_sound w r kappa lambda (t : term kappa lambda) :
  (forall c, names c t -> move_constants r w c = w c) -> symmetry w r t.
Proof.
move=> fixed; apply/exactness => x.
have [e d] := only_named_constants_matter x (fun c n => esym (fixed c n)).
have [_ d'] := only_named_constants_matter x fixed.
by split=> //; split.
Qed.

(* No constants: nothing is lost. *)
Corollary no_constants w r kappa lambda (t : term kappa lambda) : (forall c, ~ names c t) -> symmetry w r t.
Proof. by move=> none; apply: meet_sound => c n; case: (none c). Qed.

(* Damping by a constant: the claim cannot be exceeded. *)
Theorem damping_exact w r c (t : term (crow c) (ccol c)) :
  (forall d, ~ names d t) -> (exists x, defined x w t) ->
  symmetry w r (Add t (Cst c)) <-> move_constants r w c = w c.
Proof.
move=> none [x dx]; rewrite exactness; split=> [bl | fixed].
  have [_ /(_ (conj dx I))] := bl x => /=.
  have [-> _] := only_named_constants_matter x (w := move_constants r w) (z := w) (fun d n => match none d n with end).
  by move/addrI.
apply/exactness/meet_sound => d /= [n | ->] //.
by case: (none d).
Qed.

(* Scale equations. Constants that are fixed up to a factor chi each; a term has grade k if its weights agree. *)
Section Grades.

Variables (w : constants) (r : frame) (chi : constant -> F).
Hypothesis chi_not_zero : forall c, chi c != 0.
Hypothesis fixed_up_to_scale : forall c, move_constants r w c = chi c *: w c.

Inductive graded : forall kappa lambda, F -> term kappa lambda -> Prop :=
| graded_var v : graded 1 (Var v)
| graded_cst c : graded (chi c) (Cst c)
| graded_add kappa lambda k (t u : term kappa lambda) : graded k t -> graded k u -> graded k (Add t u)
| graded_scale kappa lambda k z (t : term kappa lambda) : graded k t -> graded k (Scale z t)
| graded_mul kappa mu lambda k l (t : term kappa mu) (u : term (dual mu) lambda) :
    graded k t -> graded l u -> graded (k * l) (Mul t u)
| graded_tr kappa lambda k (t : term kappa lambda) : graded k t -> graded k (Tr t)
| graded_inv X b c k (t : term (X, b) (X, c)) : graded k t -> graded k^-1 (Inv t)
| graded_prim p (a : forall i : argument p, term (arow i) (acol i)) :
    (forall i, graded 1 (a i)) -> graded 1 (Prim a).

(* Moving the constants multiplies a term of grade k by k. *)
Theorem grades_sound x kappa lambda k (t : term kappa lambda) : graded k t ->
  [/\ k != 0, defined x w t -> eval x (move_constants r w) t = k *: eval x w t
    & defined x w t <-> defined x (move_constants r w) t].
Proof.
elim=> {kappa lambda k t} [v|c|k l z t u _ [z0 et dt] _ [_ eu du]|k l z s t _ [z0 et dt]
    |k m l z y t u _ [z0 et dt] _ [y0 eu du]|k l z t _ [z0 et dt]|X b c z t _ [z0 et dt]|p a _ IHa] /=.
- by rewrite oner_eq0 scale1r.
- by rewrite chi_not_zero fixed_up_to_scale.
- by split=> [|[/et -> /eu ->]|] //; [rewrite scalerDr | tauto].
- by split=> // /et ->; rewrite !scalerA mulrC.
- split=> [|[/et -> /eu ->]|]; [by rewrite mulf_neq0 | | by tauto].
  by rewrite -scalemxAl -scalemxAr scalerA.
- by split=> // /et ->; rewrite linearZ.
- split=> [|[/et -> ut]|]; [by rewrite invr_eq0 | by rewrite invmxZ ?unitmxZ ?unitfE |].
  by split=> -[d]; [rewrite et // | have d' := proj2 dt d; rewrite et //]; rewrite unitmxZ ?unitfE //; tauto.
have e i (d : defined x w (a i)) : eval x (move_constants r w) (a i) = eval x w (a i).
  by case: (IHa i) => _ ->; rewrite ?scale1r.
have da : (forall i, defined x w (a i)) <-> (forall i, defined x (move_constants r w) (a i)).
  by split=> d i; case: (IHa i) => _ _ [d1 d2]; auto.
split; rewrite ?oner_eq0 ?scale1r //.
  by case=> d _; apply: compute_ext => i; rewrite e.
split=> -[d dom].
  by split; [apply/da | apply: domain_ext dom => i; rewrite e].
have d' := proj2 da d.
by split=> //; apply: domain_ext dom => i; rewrite e.
Qed.

(* A finished step of grade 1 is kept: this is dimensional analysis. *)
Theorem scale_equations kappa lambda (t : term kappa lambda) : graded 1 t -> symmetry w r t.
Proof.
move=> g; apply/exactness => x; have [_ e d] := grades_sound x g.
by split=> // defined_there; rewrite e // scale1r.
Qed.

End Grades.

End Terms.

(* Trajectories: if every step commutes with a motion of the states, so do all iterates. *)
Section Trajectories.

Variables (state state' : Type) (move : state -> state') (step : nat -> state -> state) (step' : nat -> state' -> state').
Hypothesis steps_commute : forall t s, step' t (move s) = move (step t s).

Fixpoint iterate S (f : nat -> S -> S) t s := if t is u.+1 then f u (iterate f u s) else s.

Theorem trajectory t s : iterate step' t (move s) = move (iterate step t s).
Proof. by elim: t => [|t IH] //=; rewrite IH steps_commute. Qed.

End Trajectories.

(* K-FAC as an expression: G^-1 X A^-1. It type-checks only this way round, and names nothing. *)
Section KFAC.

Variables (F : fieldType) (q p : nat).

Inductive kfac_space := PreActivations | Hull.
Inductive kfac_variable := VarG | VarA | VarX.

Definition kfac_dim X := if X is Hull then p else q.
Definition kfac_row v : index kfac_space :=
  match v with VarG => (PreActivations, false) | VarA => (Hull, true) | VarX => (PreActivations, false) end.
Definition kfac_col v : index kfac_space :=
  match v with VarG => (PreActivations, false) | VarA => (Hull, true) | VarX => (Hull, true) end.

Variables (constant : Type) (crow ccol : constant -> index kfac_space).

(* No primitives are used. *)
Definition none_argument (_ : False) : Type := False.
Definition none_row p (_ : none_argument p) : index kfac_space := match p with end.
Definition none_output (p : False) : index kfac_space := match p with end.
Definition none_domain p (_ : arguments F kfac_dim (@none_row) (@none_row) p) : Prop := False.
Definition none_compute p (_ : arguments F kfac_dim (@none_row) (@none_row) p) :
  tensor F kfac_dim (none_output p) (none_output p) := match p with end.

Local Notation expression := (term F kfac_row kfac_col crow ccol (@none_row) (@none_row) none_output none_output).
Local Notation V v := (Var F kfac_row kfac_col crow ccol (@none_row) (@none_row) none_output none_output v).

Definition kfac_expression : expression (PreActivations, true) (Hull, false) :=
  Mul (mu := (Hull, true)) (Mul (mu := (PreActivations, true)) (Inv (V VarG)) (V VarX)) (Inv (V VarA)).

Lemma kfac_expression_value (x : values F kfac_dim kfac_row kfac_col) (w : constants F kfac_dim crow ccol) :
  eval none_compute x w kfac_expression = invmx (x VarG) *m x VarX *m invmx (x VarA).
Proof. by []. Qed.

(* Whatever the constants are, they are not in it: it keeps every frame. *)
Theorem kfac_expression_keeps_every_frame (w : constants F kfac_dim crow ccol) r :
  symmetry none_domain none_compute w r kfac_expression.
Proof.
apply: no_constants => [P|P|P|c] //=; try by case: P.
by case=> [[]|].
Qed.

End KFAC.
