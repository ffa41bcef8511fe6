(* Theorem 1: the sharp of an inner product is natural under isomorphisms, and covectors move by the inverse
   transpose. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Sharp.

Variables (F : fieldType) (n : nat).
Implicit Types (g r : 'M[F]_n) (v xi : 'cV[F]_n).

Definition flat g v := g *m v.
Definition sharp g xi := invmx g *m xi.

(* How a covector and a form move when vectors move by r: so that no value changes. *)
Definition move_covector r xi := contragredient r *m xi.
Definition move_form r g := contragredient r *m g *m invmx r.

(* The sharp is the one vector whose flat is the covector. *)
Lemma sharp_solves g v xi : g \in unitmx -> (flat g v = xi) <-> (v = sharp g xi).
Proof.
by move=> ug; rewrite /flat /sharp; split=> [<-|->]; rewrite ?mulKmx ?mulKVmx.
Qed.

(* xi'(r v) = xi(v) for every v determines xi' = r^-T xi. *)
Theorem covectors_move_by_inverse_transpose r xi xi' :
  r \in unitmx -> (forall v, pairing xi' (r *m v) = pairing xi v) <-> xi' = move_covector r xi.
Proof.
move=> ur; split=> [same | -> v]; last first.
  by rewrite pairing_mull /move_covector mulmxA contragredient_left // mul1mx.
have: r^T *m xi' = xi by apply: pairing_nondegenerate => v; rewrite -pairing_mull.
by move=> <-; rewrite /move_covector mulmxA contragredient_right // mul1mx.
Qed.

(* g'(r u, r v) = g(u, v) for every u and v determines g' = r^-T g r^-1. *)


(* g'(r u, r v) = g(u, v) for every u and v determines g' = r^-T g r^-1. *)
Theorem forms_move_by_inverse_transpose r g g' :
  r \in unitmx ->
  (forall u v, pairing (r *m u) (flat g' (r *m v)) = pairing u (flat g v)) <-> g' = move_form r g.
Proof.
move=> ur; rewrite /flat /move_form; split=> [same | -> u v]; last first.
  by rewrite pairingC pairing_mull pairingC !mulmxA contragredient_left // mul1mx mulmxKV.
suff <- : r^T *m g' *m r = g by rewrite !mulmxA contragredient_right // mul1mx mulmxK.
by apply: form_ext => u v; rewrite -same [RHS]pairingC [RHS]pairing_mull [RHS]pairingC !mulmxA.
Qed.

(* Theorem 1. The flat and the sharp commute with every isomorphism. *)
Theorem flat_is_natural r g v :
  r \in unitmx -> flat (move_form r g) (r *m v) = move_covector r (flat g v).
Proof. by move=> ur; rewrite /flat /move_form /move_covector !mulmxA mulmxKV. Qed.

Lemma move_form_unit r g : r \in unitmx -> g \in unitmx -> move_form r g \in unitmx.
Proof. by move=> ur ug; rewrite !unitmx_mul contragredient_unit // ug unitmx_inv ur. Qed.

Theorem sharp_is_natural r g xi :
  r \in unitmx -> g \in unitmx -> sharp (move_form r g) (move_covector r xi) = r *m sharp g xi.
Proof.
move=> ur ug; symmetry; apply: (proj1 (sharp_solves _ _ (move_form_unit ur ug))).
by rewrite flat_is_natural // /flat /sharp mulKVmx.
Qed.

(* So is every value made of them. *)
Corollary length_of_a_covector_is_natural r g xi :
  r \in unitmx -> g \in unitmx ->
  pairing (move_covector r xi) (sharp (move_form r g) (move_covector r xi)) = pairing xi (sharp g xi).
Proof.
move=> ur ug; rewrite sharp_is_natural //.
by have [_] := covectors_move_by_inverse_transpose xi (move_covector r xi) ur; apply.
Qed.

(* Moves compose and can be undone: they are an action. *)
Lemma move_form_undone r g : r \in unitmx -> r^T *m move_form r g *m r = g.
Proof. by move=> ur; rewrite /move_form !mulmxA contragredient_left // mul1mx mulmxKV. Qed.

Lemma move_form_add r g h : move_form r (g + h) = move_form r g + move_form r h.
Proof. by rewrite /move_form mulmxDr mulmxDl. Qed.

Lemma move_form_scale r k g : move_form r (k *: g) = k *: move_form r g.
Proof. by rewrite /move_form -scalemxAr -scalemxAl. Qed.

(* The hypothesis is needed: a step that takes the components of the covector for those of a vector commutes with r
   for every covector only if r is orthogonal. *)
Theorem gradient_of_coordinates_is_not_natural r :
  r \in unitmx -> (forall xi, move_covector r xi = r *m xi) <-> r^T *m r = 1%:M.
Proof.
move=> ur; rewrite /move_covector; split=> [same | orthogonal xi].
  by rewrite -[X in _ *m X](map_ext same) contragredient_left.
have -> : r *m xi = contragredient r *m (r^T *m r) *m xi by rewrite mulmxA contragredient_right // mul1mx.
by rewrite orthogonal mulmx1.
Qed.

End Sharp.
