(* Theorem 2: the K-FAC metric E_a[G(D a, D' a)] is <D, G D' A>, and its sharp is DW |-> G^-1 DW A^-1. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section KFAC.

Variable F : fieldType.

(* Activations live in a space of dimension p (the hull, where there is a bias), pre-activations in one of
   dimension q: tangents D and covectors X of Hom are q x p. *)
Variables p q : nat.
Implicit Types (D X : 'M[F]_(q, p)) (G : 'M[F]_q) (A : 'M[F]_p).

(* A batch of inputs with weights, and its second moment. *)
Variables (I : finType) (weight : I -> F) (a : I -> 'cV[F]_p).

Definition second_moment (J : finType) n (w : J -> F) (x : J -> 'cV[F]_n) : 'M[F]_n :=
  \sum_j w j *: (x j *m (x j)^T).

(* The definition of the metric, with no coordinates: the inner product G of two changes of the pre-activation,
   averaged over the inputs. *)
Definition kfac_metric G D D' := \sum_i weight i * pairing (D *m a i) (G *m (D' *m a i)).

Lemma moment_moves (J : finType) n (w : J -> F) (x : J -> 'cV[F]_n) (r : 'M[F]_n) :
  second_moment w (fun j => r *m x j) = r *m second_moment w x *m r^T.
Proof.
rewrite /second_moment mulmx_sumr mulmx_suml; apply: eq_bigr => j _.
by rewrite -scalemxAr -scalemxAl trmx_mul !mulmxA.
Qed.

Lemma moment_symmetric (J : finType) n (w : J -> F) (x : J -> 'cV[F]_n) :
  (second_moment w x)^T = second_moment w x.
Proof.
rewrite /second_moment linear_sum; apply: eq_bigr => j _ /=.
by rewrite linearZ /= trmx_mul trmxK.
Qed.

Theorem kfac_metric_identity G D D' :
  kfac_metric G D D' = pairing D (G *m D' *m second_moment weight a).
Proof.
rewrite /kfac_metric /second_moment mulmx_sumr pairing_sumr; apply: eq_bigr => i _.
rewrite -scalemxAr pairingZr; congr (_ * _).
by rewrite pairingC pairing_mulr pairingC !mulmxA.
Qed.

(* K-FAC is the exact Fisher block whose inputs and per-example inner products G_j are made independent. *)
Theorem kfac_is_the_fisher_of_independent_marginals (J : finType) (v : J -> F) (Gj : J -> 'M[F]_q) D D' :
  \sum_i \sum_j weight i * v j * pairing (D *m a i) (Gj j *m (D' *m a i))
  = kfac_metric (\sum_j v j *: Gj j) D D'.
Proof.
apply: eq_bigr => i _; rewrite mulmx_suml pairing_sumr mulr_sumr; apply: eq_bigr => j _.
by rewrite -scalemxAl pairingZr mulrA.
Qed.

(* The flat of the product of two forms, and its sharp. *)
Definition kfac_flat G A D := G *m D *m A.
Definition kfac_sharp G A X := invmx G *m X *m invmx A.

Theorem kfac_flat_represents_the_metric G D D' :
  kfac_metric G D D' = pairing D (kfac_flat G (second_moment weight a) D').
Proof. exact: kfac_metric_identity. Qed.

Theorem kfac_sharp_solves G A D X :
  G \in unitmx -> A \in unitmx -> (kfac_flat G A D = X) <-> (D = kfac_sharp G A X).
Proof.
move=> uG uA; rewrite /kfac_flat /kfac_sharp; split=> [<- | ->].
  by rewrite !mulmxA mulVmx // mul1mx mulmxK.
by rewrite !mulmxA mulmxV // mul1mx mulmxKV.
Qed.

(* Theorem 2. The vector that represents a covector X in the K-FAC metric is G^-1 X A^-1, and no other. *)
Theorem sharp_of_the_kfac_metric G X D (A := second_moment weight a) :
  G \in unitmx -> A \in unitmx ->
  (forall E, kfac_metric G E D = pairing X E) <-> D = kfac_sharp G A X.
Proof.
move=> uG uA; rewrite -kfac_sharp_solves //; split=> [same | <- E].
  by apply: pairing_nondegenerate => E; rewrite -same kfac_metric_identity pairingC.
by rewrite kfac_metric_identity pairingC.
Qed.

(* Frames r of the pre-activations and alpha of the activations move everything along. *)
Theorem kfac_sharp_is_natural (r : 'M[F]_q) (alpha : 'M[F]_p) G A X :
  r \in unitmx -> alpha \in unitmx -> G \in unitmx -> A \in unitmx ->
  kfac_sharp (contragredient r *m G *m invmx r) (alpha *m A *m alpha^T) (contragredient r *m X *m alpha^T)
  = r *m kfac_sharp G A X *m invmx alpha.
Proof.
move=> ur ualpha uG uA.
have uG' : contragredient r *m G *m invmx r \in unitmx.
  by rewrite !unitmx_mul contragredient_unit // uG unitmx_inv.
have uA' : alpha *m A *m alpha^T \in unitmx by rewrite !unitmx_mul ualpha uA unitmx_tr.
symmetry; apply: (proj1 (kfac_sharp_solves _ _ uG' uA')).
rewrite /kfac_flat /kfac_sharp -!mulmxA (mulKmx ur) (mulKmx ualpha) mulKVmx //.
by rewrite [invmx A *m _]mulmxA mulVmx // mul1mx.
Qed.

End KFAC.
