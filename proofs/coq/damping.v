(* Theorem 4: damping by an inner product that is transported with the frames keeps invariance; damping by a fixed one
   leaves exactly its isometries. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries sharp_is_natural kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Damping.

Variables (F : fieldType) (n : nat).
Implicit Types (g h r : 'M[F]_n) (xi : 'cV[F]_n) (lambda : F).

Definition damped g lambda h := g + lambda *: h.

Lemma transported_damping r g lambda h :
  damped (move_form r g) lambda (move_form r h) = move_form r (damped g lambda h).
Proof. by rewrite /damped move_form_add move_form_scale. Qed.

(* The reference h moves as g does: nothing is lost. *)
Theorem transported_damping_keeps_invariance r g lambda h xi :
  r \in unitmx -> damped g lambda h \in unitmx ->
  sharp (damped (move_form r g) lambda (move_form r h)) (move_covector r xi) = r *m sharp (damped g lambda h) xi.
Proof. by move=> ur ud; rewrite transported_damping; apply: sharp_is_natural. Qed.

(* The same for factors that are damped one by one. *)
Theorem transported_factor_damping_keeps_invariance p (r G Gref : 'M[F]_n) (alpha A Aref : 'M[F]_p) gamma kappa X :
  r \in unitmx -> alpha \in unitmx -> damped G gamma Gref \in unitmx -> A + kappa *: Aref \in unitmx ->
  kfac_sharp (damped (move_form r G) gamma (move_form r Gref))
             (alpha *m A *m alpha^T + kappa *: (alpha *m Aref *m alpha^T))
             (contragredient r *m X *m alpha^T)
  = r *m kfac_sharp (damped G gamma Gref) (A + kappa *: Aref) X *m invmx alpha.
Proof.
move=> ur ualpha uG uA; rewrite transported_damping /move_form.
have -> : alpha *m A *m alpha^T + kappa *: (alpha *m Aref *m alpha^T) = alpha *m (A + kappa *: Aref) *m alpha^T.
  by rewrite mulmxDr mulmxDl -scalemxAr -scalemxAl.
exact: kfac_sharp_is_natural.
Qed.

(* The isometries of h. *)
Definition isometry h r := r^T *m h *m r = h.

Lemma isometry_fixes h r : r \in unitmx -> isometry h r <-> move_form r h = h.
Proof.
move=> ur; rewrite /isometry /move_form; split=> [iso | fixed].
  by rewrite -{1}iso !mulmxA contragredient_right // mul1mx mulmxK.
by rewrite -{1}fixed !mulmxA contragredient_left // mul1mx mulmxKV.
Qed.

(* Theorem 4. A reference that stays where it is: the damped step commutes with r, for every covector, exactly if r is
   an isometry of the reference. One metric g at which both steps exist is enough to tell. *)
Theorem fixed_damping_leaves_exactly_isometries r g lambda h :
  r \in unitmx -> lambda != 0 -> damped g lambda h \in unitmx -> damped (move_form r g) lambda h \in unitmx ->
  (forall xi, sharp (damped (move_form r g) lambda h) (move_covector r xi) = r *m sharp (damped g lambda h) xi)
  <-> isometry h r.
Proof.
move=> ur nz ud ud'; rewrite isometry_fixes //; split=> [same | fixed xi]; last first.
  by rewrite -{1}fixed; apply: transported_damping_keeps_invariance.
suff: damped (move_form r g) lambda h = damped (move_form r g) lambda (move_form r h).
  by rewrite /damped => /addrI /(scalerI nz).
rewrite transported_damping; apply: map_ext => v.
have := same (damped g lambda h *m (invmx r *m v)).
rewrite {2}/sharp mulKmx // mulKVmx // => /esym /(proj2 (sharp_solves _ _ ud')).
by rewrite /flat => ->; rewrite /move_covector /move_form !mulmxA.
Qed.

(* In particular the identity matrix keeps the orthogonal group and nothing more. *)
Corollary euclidean_damping_leaves_orthogonal_maps r g lambda :
  r \in unitmx -> lambda != 0 -> damped g lambda 1%:M \in unitmx -> damped (move_form r g) lambda 1%:M \in unitmx ->
  (forall xi, sharp (damped (move_form r g) lambda 1%:M) (move_covector r xi) = r *m sharp (damped g lambda 1%:M) xi)
  <-> r^T *m r = 1%:M.
Proof. by move=> *; rewrite fixed_damping_leaves_exactly_isometries // /isometry mulmx1. Qed.

End Damping.
