(* Theorem 13: EKFAC is the Frobenius-nearest form that is diagonal in its basis, and it is not affine invariant. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Optimal.

Variables (F : realFieldType) (n : nat) (U : 'M[F]_n).

(* Columns of U are an orthonormal basis. *)
Hypothesis U_orthonormal : U^T *m U = 1%:M.

Definition frobenius (X : 'M[F]_n) : F := pairing X X.
Definition with_spectrum (s : 'rV[F]_n) := U *m diag_mx s *m U^T.

(* The second moments along the basis. *)
Definition moments (S : 'M[F]_n) : 'rV[F]_n := \row_i (U^T *m S *m U) i i.

Lemma frobeniusE (X : 'M[F]_n) : frobenius X = \sum_j \sum_i X i j ^+ 2.
Proof. by rewrite /frobenius pairingE. Qed.

Lemma U_orthonormal_rows : U *m U^T = 1%:M.
Proof. exact: mulmx1C U_orthonormal. Qed.

Lemma frobenius_in_the_basis (X : 'M[F]_n) : frobenius (U^T *m X *m U) = frobenius X.
Proof.
rewrite /frobenius pairing_mulr pairing_mull trmxK -!mulmxA U_orthonormal_rows mulmx1 !mulmxA.
by rewrite U_orthonormal_rows mul1mx.
Qed.

Lemma distance_in_the_basis S s : frobenius (S - with_spectrum s) = frobenius (U^T *m S *m U - diag_mx s).
Proof.
rewrite -frobenius_in_the_basis; congr frobenius.
rewrite mulmxBr mulmxBl /with_spectrum !mulmxA U_orthonormal mul1mx -!mulmxA U_orthonormal mulmx1.
by rewrite !mulmxA.
Qed.

(* Theorem 13a. No other spectrum in this basis is nearer. *)
Theorem moments_are_frobenius_optimal (S : 'M[F]_n) s :
  frobenius (S - with_spectrum (moments S)) <= frobenius (S - with_spectrum s).
Proof.
rewrite !distance_in_the_basis !frobeniusE; apply: ler_sum => j _; apply: ler_sum => i _.
rewrite !mxE; case: eqP => [-> | _] //=; rewrite !mulr1n.
by rewrite subrr expr0n sqr_ge0.
Qed.

(* K-FAC is diagonal in the same basis when the basis consists of its eigenvectors, so EKFAC is at least as near. *)
Corollary ekfac_is_at_least_as_near_as_kfac (S kfac : 'M[F]_n) s :
  kfac = with_spectrum s -> frobenius (S - with_spectrum (moments S)) <= frobenius (S - kfac).
Proof. by move=> ->; apply: moments_are_frobenius_optimal. Qed.

(* For S = E[g g^T] they are the mean squares of the projections. *)
Lemma moments_are_mean_squares (I : finType) (w : I -> F) (g : I -> 'cV[F]_n) i :
  moments (second_moment w g) 0 i = \sum_k w k * (U^T *m g k) i 0 ^+ 2.
Proof.
rewrite mxE -[U in X in (_ *m _ *m X)]trmxK -moment_moves /second_moment summxE; apply: eq_bigr => k _.
by rewrite !mxE big_ord1 !mxE.
Qed.

End Optimal.

(* Theorem 13b: a layer with one output and two inputs, in exact arithmetic.

   Activations move by r, so A' = r A r^T, the Fisher S' = r S r^T, the covector xi' = r xi, and a step that does not
   depend on coordinates moves by the inverse transpose. EKFAC takes orthogonal eigenvectors of A, here not normalized
   so that they stay rational: the step is the same for any length of theirs. *)
Section Counterexample.

Local Notation Q := rat.

Definition ekfac_step (U S : 'M[Q]_2) (xi : 'cV[Q]_2) : 'cV[Q]_2 :=
  U *m (diag_mx (\row_i (moments U S 0 i)^-1) *m (U^T *m xi)).

(* Columns of U are orthogonal eigenvectors of A with two different eigenvalues, so they are the only ones. *)
Definition eigenbasis (A U : 'M[Q]_2) := exists s d : 'rV[Q]_2,
  [/\ A *m U = U *m diag_mx s, s 0 0 != s 0 1, U^T *m U = diag_mx d & forall i, d 0 i != 0].

Definition mx2 (a b c d : Q) : 'M[Q]_2 :=
  \matrix_(i, j) if i == 0 then (if j == 0 then a else b) else (if j == 0 then c else d).
Definition cv2 (a b : Q) : 'cV[Q]_2 := \col_i if i == 0 then a else b.
Definition rv2 (a b : Q) : 'rV[Q]_2 := \row_i if i == 0 then a else b.

(* Three inputs of weight 1, whose output variances are 3, 1 and 1. *)
Definition inputs (i : 'I_3) : 'cV[Q]_2 :=
  if i == 0 then cv2 1 1 else if i == 1 then cv2 1 (-1) else cv2 1 0.
Definition share (_ : 'I_3) : Q := 1.
Definition variance (i : 'I_3) : Q := if i == 0 then 3%:R else 1.

Definition A := second_moment share inputs.
Definition S := second_moment (fun i => share i * variance i) inputs.
Definition r := mx2 1 1 0 1.
Definition xi := cv2 40%:R 0.

(* Equality of small matrices of numbers, entry by entry. *)
Ltac by_entries :=
  rewrite /A /S /second_moment; apply/matrixP => -[[|[|?]] // ?] [[|[|?]] // ?];
  repeat (rewrite !mxE || rewrite !summxE || rewrite !big_ord_recl || rewrite !big_ord0);
  apply/eqP; vm_compute; reflexivity.

Lemma A_value : A = mx2 3%:R 0 0 2%:R.
Proof. by_entries. Qed.

Lemma S_value : S = mx2 5%:R 2%:R 2%:R 4%:R.
Proof. by_entries. Qed.

(* The basis in the moved coordinates. *)
Definition U' := mx2 2%:R (-1) 1 2%:R.

Lemma r_inverse : r \in unitmx /\ invmx r = mx2 1 (-1) 0 1.
Proof. by apply: inverse_from_right; rewrite /r; by_entries. Qed.

Lemma moved_A : r *m A *m r^T = mx2 5%:R 2%:R 2%:R 2%:R.
Proof. by rewrite A_value /r; by_entries. Qed.

Lemma moved_S : r *m S *m r^T = mx2 13%:R 6%:R 6%:R 4%:R.
Proof. by rewrite S_value /r; by_entries. Qed.

Lemma eigenbasis_of_A : eigenbasis A 1%:M.
Proof.
exists (rv2 3%:R 2%:R), (rv2 1 1); rewrite A_value; split.
- by by_entries.
- by rewrite !mxE; apply/negP; vm_compute.
- by by_entries.
- by move=> -[[|[|?]] // ?]; rewrite !mxE.
Qed.

Lemma eigenbasis_of_moved_A : eigenbasis (r *m A *m r^T) U'.
Proof.
exists (rv2 6%:R 1), (rv2 5%:R 5%:R); rewrite moved_A /U'; split.
- by by_entries.
- by rewrite !mxE; apply/negP; vm_compute.
- by by_entries.
- by move=> -[[|[|?]] // ?]; rewrite !mxE; apply/negP; vm_compute.
Qed.

Lemma own_step : ekfac_step 1%:M S xi = cv2 8%:R 0.
Proof.
rewrite /ekfac_step !trmx1 !mul1mx /moments trmx1 mul1mx mulmx1 S_value.
by by_entries.
Qed.

Lemma moved_moments : moments U' (mx2 13%:R 6%:R 6%:R 4%:R) = rv2 80%:R 5%:R.
Proof.
have products : U'^T *m mx2 13%:R 6%:R 6%:R 4%:R *m U' = mx2 80%:R 0 0 5%:R.
  have -> : U'^T *m mx2 13%:R 6%:R 6%:R 4%:R = mx2 32%:R 16%:R (-1) 2%:R by rewrite /U'; by_entries.
  by rewrite /U'; by_entries.
by rewrite /moments products; by_entries.
Qed.

Lemma moved_step : ekfac_step U' (r *m S *m r^T) (r *m xi) = cv2 10%:R (- 15%:R).
Proof.
rewrite /ekfac_step moved_S moved_moments.
have -> : r *m xi = cv2 40%:R 0 by rewrite /r /xi; by_entries.
have -> : U'^T *m cv2 40%:R 0 = cv2 80%:R (- 40%:R) by rewrite /U'; by_entries.
have -> : diag_mx (\row_i (rv2 80%:R 5%:R 0 i)^-1) *m cv2 80%:R (- 40%:R) = cv2 1 (- 8%:R) by by_entries.
by rewrite /U'; by_entries.
Qed.

(* The step in the moved coordinates is not the moved step. *)
Theorem ekfac_is_not_affine_invariant :
  [/\ r \in unitmx, eigenbasis A 1%:M, eigenbasis (r *m A *m r^T) U'
    & ekfac_step U' (r *m S *m r^T) (r *m xi) != contragredient r *m ekfac_step 1%:M S xi].
Proof.
have [ur inv_r] := r_inverse; split=> //; [exact: eigenbasis_of_A | exact: eigenbasis_of_moved_A |].
rewrite own_step moved_step /contragredient inv_r; apply/eqP => /matrixP/(_ 0 0).
by repeat (rewrite !mxE || rewrite !big_ord_recl || rewrite !big_ord0); move/eqP; vm_compute.
Qed.

End Counterexample.
