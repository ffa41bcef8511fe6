(* Theorem 9: gradient descent in an orthonormal frame is natural gradient descent; K-FAC is gradient descent between
   two whitened spaces; PRONG is K-FAC with G = I and damping of the centred covariance. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries sharp_is_natural kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Frames.

Variables (F : fieldType) (n : nat).
Implicit Types (g E : 'M[F]_n) (w xi : 'cV[F]_n).

(* Write w = E w'. The covector xi pulls back to E^T xi; a step of gradient descent in w' goes back by E. *)
Definition gradient_step_in_frame E eta xi w := E *m (invmx E *m w - eta *: (E^T *m xi)).

(* Orthonormal for g: E E^T = g^-1. *)
Definition orthonormal g E := E *m E^T = invmx g.

Lemma orthonormal_frames_whiten g E : g \in unitmx -> E \in unitmx -> orthonormal g E <-> E^T *m g *m E = 1%:M.
Proof.
move=> ug uE; rewrite /orthonormal; split=> [o | white].
  have -> : g = contragredient E *m invmx E.
    by rewrite -[g]invmxK -o inverse_of_product ?unitmx_tr // /contragredient trmx_inv.
  by rewrite !mulmxA contragredient_left // mul1mx mulVmx.
have [_ eE] := inverse_from_right white.
by rewrite -[X in X *m _]eE inverse_of_product ?unitmx_tr // -mulmxA mulVmx ?mulmx1 ?unitmx_tr.
Qed.

(* Gradient descent in the frame is the natural gradient step exactly when the frame is orthonormal. *)
Theorem gradient_descent_in_an_orthonormal_frame g E eta :
  E \in unitmx -> eta != 0 ->
  (forall xi w, gradient_step_in_frame E eta xi w = w - eta *: sharp g xi) <-> orthonormal g E.
Proof.
move=> uE nz; rewrite /gradient_step_in_frame /sharp /orthonormal.
have expand xi w : E *m (invmx E *m w - eta *: (E^T *m xi)) = w - eta *: (E *m E^T *m xi).
  by rewrite mulmxBr mulKVmx // -scalemxAr mulmxA.
split=> [same | o xi w]; last by rewrite expand o.
apply: map_ext => v; move: (same v 0); rewrite expand !sub0r => /oppr_inj.
by apply: scalerI.
Qed.

(* When the metric is refreshed, w' must be reset to E_new^-1 w: this keeps w, and nothing else does. *)
Theorem refresh_keeps_the_parameters E Enew w w' :
  Enew \in unitmx -> (Enew *m w' = E *m w) <-> (w' = invmx Enew *m (E *m w)).
Proof. by move=> u; split=> [<- | ->]; rewrite ?mulKmx ?mulKVmx. Qed.

End Frames.

Section Kronecker.

Variables (F : fieldType) (q p : nat) (G ES : 'M[F]_q) (A EA : 'M[F]_p).
Hypothesis ES_orthonormal : ES *m ES^T = invmx G.
Hypothesis EA_orthonormal : EA *m EA^T = invmx A.

(* Two fixed linear layers around W': W = ES W' EA^T. Gradient descent in W' is K-FAC in W. *)
Theorem kfac_is_gradient_descent_between_whitened_spaces eta (X W' : 'M[F]_(q, p)) :
  ES *m (W' - eta *: (ES^T *m X *m EA)) *m EA^T = ES *m W' *m EA^T - eta *: kfac_sharp G A X.
Proof.
rewrite mulmxBr mulmxBl -scalemxAr -scalemxAl /kfac_sharp -ES_orthonormal -EA_orthonormal.
by rewrite !mulmxA.
Qed.

End Kronecker.

(* PRONG: the layer s = V U (h - c) + b sees inputs h centred by c and whitened by U, and V, b move by gradient descent.
   In the layer's own parameters, [W d] with W = V U and d = b - V U c, this is the step -eta X A^-1 with
   A = [[Sigma + c c^T, c], [c^T, 1]], where U^T U = Sigma^-1 (Sigma with its damping, stale or not). *)
Section PRONG.

Variables (F : fieldType) (q p : nat) (Sigma U : 'M[F]_p) (c : 'cV[F]_p) (eta : F).
Hypothesis Sigma_invertible : Sigma \in unitmx.
Hypothesis U_whitens : U^T *m U = invmx Sigma.

(* Any covector [X y] on the parameters [W d]: X = E[g h^T], y = E[g]. *)
Variables (X : 'M[F]_(q, p)) (y : 'cV[F]_q).

(* The covector on V is E[g (U (h - c))^T]. *)
Definition covector_on_V := (X - y *m c^T) *m U^T.

Definition own_weights (V : 'M[F]_(q, p)) (b : 'cV[F]_q) : 'M[F]_(q, p + 1) := row_mx (V *m U) (b - V *m U *m c).

Definition hull_moment : 'M[F]_(p + 1) := block_mx (Sigma + c *m c^T) c c^T 1%:M.

Lemma prong_solves :
  row_mx (covector_on_V *m U) (y - covector_on_V *m U *m c) *m hull_moment = row_mx X y.
Proof.
rewrite /hull_moment mul_row_block /covector_on_V -(mulmxA _ U^T) U_whitens.
set Z := _ *m invmx Sigma; have ZS : Z *m Sigma = X - y *m c^T by rewrite /Z mulmxKV.
congr row_mx; last by rewrite mulmx1 addrCA subrr addr0.
by rewrite mulmxDr ZS mulmxBl !mulmxA addrACA subrK subrr addr0.
Qed.

(* The centred moment is a moment of the hull: invertible with Sigma. *)
Lemma hull_moment_unit : hull_moment \in unitmx.
Proof.
pose shear : 'M[F]_(p + 1) := block_mx 1%:M c 0 1%:M.
have factored : hull_moment = shear *m block_mx Sigma 0 0 1%:M *m shear^T.
  rewrite /shear tr_block_mx !trmx1 trmx0 !mulmx_block !mul1mx !mulmx1 !mul0mx !mulmx0 !add0r !addr0.
  by rewrite mul1mx.
by rewrite factored !unitmx_mul unitmx_tr !unitmxE !det_ublock !det1 !mulr1 unitr1 -unitmxE Sigma_invertible.
Qed.

Theorem prong_is_one_sided_kfac V b :
  own_weights (V - eta *: covector_on_V) (b - eta *: y)
  = own_weights V b - eta *: kfac_sharp 1%:M hull_moment (row_mx X y).
Proof.
have -> : kfac_sharp 1%:M hull_moment (row_mx X y)
    = row_mx (covector_on_V *m U) (y - covector_on_V *m U *m c).
  by rewrite /kfac_sharp -prong_solves invmx1 mul1mx mulmxK ?hull_moment_unit.
rewrite /own_weights scale_row_mx opp_row_mx add_row_mx; congr row_mx.
  by rewrite mulmxBl -scalemxAl.
by rewrite !mulmxBl -!scalemxAl scalerBr !opprD !opprK addrACA.
Qed.

End PRONG.
