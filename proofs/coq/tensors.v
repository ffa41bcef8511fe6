(* Tensors with two indices, each a space and a variance, and how frames move them: by M |-> rho(kappa) M rho(lambda)^T,
   where rho is the frame r on upper and r^-T on lower indices. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Tensors.

Variables (F : fieldType) (space : Type) (dim : space -> nat).

(* true: up (vectors); false: down (covectors). *)
Definition index := (space * bool)%type.
Definition dual (kappa : index) : index := (kappa.1, ~~ kappa.2).

Definition tensor (kappa lambda : index) := 'M[F]_(dim kappa.1, dim lambda.1).

Record frame := Frame { at_space :> forall X, 'M[F]_(dim X); frame_unit : forall X, at_space X \in unitmx }.

Definition rho (r : frame) (kappa : index) : 'M[F]_(dim kappa.1) :=
  if kappa.2 then r kappa.1 else contragredient (r kappa.1).

Definition act (r : frame) kappa lambda (T : tensor kappa lambda) : tensor kappa lambda :=
  rho r kappa *m T *m (rho r lambda)^T.

Lemma rho_unit r kappa : rho r kappa \in unitmx.
Proof. by rewrite /rho; case: ifP => _; rewrite ?contragredient_unit ?frame_unit. Qed.

(* An upper and a lower index of the same space cancel. *)
Lemma rho_cancels r kappa : (rho r kappa)^T *m rho r (dual kappa) = 1%:M.
Proof.
have ur := frame_unit r kappa.1; rewrite /rho /=; case: kappa.2 => /=.
  exact: contragredient_left.
by rewrite /contragredient trmxK mulVmx.
Qed.

Lemma rho_dual r kappa : rho r (dual kappa) = contragredient (rho r kappa).
Proof.
have u := rho_unit r kappa; rewrite -[LHS]mul1mx -(contragredient_right u) -mulmxA rho_cancels.
by rewrite mulmx1.
Qed.

Lemma act_add r kappa lambda (S T : tensor kappa lambda) : act r (S + T) = act r S + act r T.
Proof. by rewrite /act mulmxDr mulmxDl. Qed.

Lemma act_scale r kappa lambda k (T : tensor kappa lambda) : act r (k *: T) = k *: act r T.
Proof. by rewrite /act -scalemxAr -scalemxAl. Qed.

Lemma act_contract r kappa mu lambda (S : tensor kappa mu) (T : tensor (dual mu) lambda) :
  act r S *m act r T = act r (S *m T : tensor kappa lambda).
Proof. by rewrite /act !mulmxA -(mulmxA _ (rho r mu)^T) rho_cancels mulmx1. Qed.

Lemma act_transpose r kappa lambda (T : tensor kappa lambda) :
  (act r T)^T = act r (T^T : tensor lambda kappa).
Proof. by rewrite /act !trmx_mul trmxK mulmxA. Qed.

Lemma act_unit r X b c (T : tensor (X, b) (X, c)) : (act r T \in unitmx) = (T \in unitmx).
Proof.
rewrite /act !unitmx_mul unitmx_tr; apply/idP/idP => [/andP[/andP[_ ->]] | ->] //.
by rewrite andbT; apply/andP; split; [exact: (rho_unit r (X, b)) | exact: (rho_unit r (X, c))].
Qed.

Lemma act_inverse r X b c (T : tensor (X, b) (X, c)) : T \in unitmx ->
  invmx (act r T) = act r (invmx T : tensor (X, ~~ c) (X, ~~ b)).
Proof.
move=> uT; have ub := rho_unit r (X, b); have uc := rho_unit r (X, c).
rewrite /act !inverse_of_product ?unitmx_mul ?unitmx_tr ?ub //.
have -> : invmx (rho r (X, c))^T = rho r (dual (X, c)) by rewrite rho_dual /contragredient trmx_inv.
have -> : (rho r (X, ~~ b))^T = invmx (rho r (X, b)) by rewrite (rho_dual r (X, b)) /contragredient trmxK.
by rewrite !mulmxA.
Qed.

(* Frames are a group: every motion can be undone. *)
Definition undo (r : frame) : frame.
Proof. by exists (fun X => invmx (r X)) => X; rewrite unitmx_inv frame_unit. Defined.

Lemma rho_undo r kappa : rho (undo r) kappa = invmx (rho r kappa).
Proof. by rewrite /rho /=; case: kappa.2; rewrite // /contragredient trmx_inv. Qed.

Lemma act_undo r kappa lambda (T : tensor kappa lambda) : act r (act (undo r) T) = T.
Proof.
rewrite /act !rho_undo !mulmxA mulmxV ?rho_unit // mul1mx -mulmxA -trmx_mul mulmxV ?rho_unit //.
by rewrite trmx1 mulmx1.
Qed.

Lemma undo_act r kappa lambda (T : tensor kappa lambda) : act (undo r) (act r T) = T.
Proof.
rewrite /act !rho_undo !mulmxA mulVmx ?rho_unit // mul1mx -mulmxA -trmx_mul mulVmx ?rho_unit //.
by rewrite trmx1 mulmx1.
Qed.

Lemma act_inj r kappa lambda (S T : tensor kappa lambda) : act r S = act r T -> S = T.
Proof. by move=> e; rewrite -(undo_act r S) e undo_act. Qed.

(* The identity matrix as a form, on a space or on its dual: it is kept by the orthogonal maps and no others. *)
Theorem fixes_identity (r : frame) X b :
  act r (1%:M : tensor (X, b) (X, b)) = 1%:M <-> r X *m (r X)^T = 1%:M.
Proof.
have ur := frame_unit r X; rewrite /act /rho /= mulmx1; case: b => //=.
rewrite /contragredient trmxK trmx_inv; split=> [e | e].
  have e' : invmx (r X *m (r X)^T) = 1%:M by rewrite inverse_of_product ?unitmx_tr.
  by rewrite -[LHS]invmxK e' invmx1.
by rewrite -inverse_of_product ?unitmx_tr // e invmx1.
Qed.

End Tensors.
