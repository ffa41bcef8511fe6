(* Theorem 5: layers that use their weights at many sites: convolutions with a pad point, the reduce form, recurrence. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section Sites.

Variables (F : fieldType) (p q : nat).

(* Points of a pixel are vectors of the hull, so that a bias is one more row. A patch has one point per tap: the pixel
   that the window meets there, or the pad point outside the image. *)
Variables (pixels sites : Type) (taps : finType) (meets : sites -> taps -> option pixels).

Definition patch (pad : 'cV[F]_p) (image : pixels -> 'cV[F]_p) (t : sites) (k : taps) : 'cV[F]_p :=
  if meets t k is Some pixel then image pixel else pad.

(* A convolution: the same matrix for a tap at every site. *)
Definition convolve (W : taps -> 'M[F]_(q, p)) (x : taps -> 'cV[F]_p) : 'cV[F]_q := \sum_k W k *m x k.

(* One frame at every pixel. The pad point is a point of the activations, and moves with them. *)
Theorem patch_of_moved_image (alpha : 'M[F]_p) pad image t k :
  patch (alpha *m pad) (fun pixel => alpha *m image pixel) t k = alpha *m patch pad image t k.
Proof. by rewrite /patch; case: (meets t k). Qed.

Theorem convolution_of_twin (Phi : 'M[F]_q) (alpha : 'M[F]_p) W pad image t : alpha \in unitmx ->
  convolve (fun k => Phi *m W k *m invmx alpha) (patch (alpha *m pad) (fun pixel => alpha *m image pixel) t)
  = Phi *m convolve W (patch pad image t).
Proof.
move=> ualpha; rewrite /convolve mulmx_sumr; apply: eq_bigr => k _.
by rewrite patch_of_moved_image mulmxA mulmxKV // mulmxA.
Qed.

(* A pad that stays where it is breaks this: if some tap meets the outside, the moved pad is the only one that works for
   all weights. *)
Theorem only_the_moved_pad_works (alpha : 'M[F]_p) pad pad' image t k :
  meets t k = None ->
  patch pad' (fun pixel => alpha *m image pixel) t k = alpha *m patch pad image t k <-> pad' = alpha *m pad.
Proof. by rewrite /patch => ->. Qed.

End Sites.

(* Moments over examples i and sites t, with weights: expand takes every site for itself, reduce first takes means of
   inputs and sums of cotangents. *)
Section Moments.

Variables (F : fieldType) (examples sites : finType) (n : nat).
Variables (weight : examples -> F) (x : examples -> sites -> 'cV[F]_n).

Definition expand (v : examples * sites -> F) := second_moment v (fun it => x it.1 it.2).
Definition reduced (c : sites -> F) i := \sum_t c t *: x i t.
Definition reduce (c : sites -> F) := second_moment weight (reduced c).

(* Cross moments between times or sites t and u, as recurrent factorizations use them. *)
Definition cross t u := \sum_i weight i *: (x i t *m (x i u)^T).

End Moments.

Section MomentsMove.

Variables (F : fieldType) (examples sites : finType) (n : nat).
Variables (weight : examples -> F) (x : examples -> sites -> 'cV[F]_n) (r : 'M[F]_n).

Local Notation moved := (fun i t => r *m x i t).

(* The same map at every site: all of them are tensors. *)
Theorem expand_is_natural v : expand moved v = r *m expand x v *m r^T.
Proof. exact: moment_moves. Qed.

Theorem reduce_is_natural c : reduce weight moved c = r *m reduce weight x c *m r^T.
Proof.
rewrite /reduce -moment_moves; apply: eq_bigr => i _; congr (_ *: (_ *m _^T));
  by rewrite /reduced mulmx_sumr; apply: eq_bigr => t _; rewrite -scalemxAr.
Qed.

Theorem cross_moments_are_natural t u : cross weight moved t u = r *m cross weight x t u *m r^T.
Proof.
rewrite /cross mulmx_sumr mulmx_suml; apply: eq_bigr => i _.
by rewrite -scalemxAr -scalemxAl trmx_mul !mulmxA.
Qed.

(* A mean of points is a point: where the functional `one` is 1 on every x, it is 1 on the reduced input as soon as the
   weights of the sites add up to 1. *)
Theorem reduced_inputs_are_points (one : 'rV[F]_n) c i :
  \sum_t c t = 1 -> (forall t, one *m x i t = 1%:M) -> one *m reduced x c i = 1%:M.
Proof.
move=> c1 point; rewrite /reduced mulmx_sumr (eq_bigr (fun t => c t *: 1%:M)) => [|t _].
  by rewrite -scaler_suml c1 scale1r.
by rewrite -scalemxAr point.
Qed.

(* Summed features are a point only where their number is one: the bias then sees the number of sites. *)
Theorem summed_inputs_are_points_of_another_weight (one : 'rV[F]_n) i :
  (forall t, one *m x i t = 1%:M) -> one *m reduced x (fun=> 1) i = #|sites|%:R%:M.
Proof.
move=> point; rewrite /reduced mulmx_sumr (eq_bigr (fun=> 1%:M)) => [|t _].
  by rewrite sumr_const -scaler_nat scalemx1.
by rewrite -scalemxAr point scale1r.
Qed.

End MomentsMove.
