(* Theorem 6: block-tridiagonal K-FAC keeps every affine frame, undamped or damped by transported references.

   Layers are 0, ..., L. A l and G l are the factors of layer l, Ax l and Gx l the cross factors between layer l and the
   next. The inverse of the Gaussian chain with these moments takes three sweeps over the layers. *)

From mathcomp Require Import all_ssreflect all_algebra.
Require Import preliminaries kfac_metric.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import GRing.Theory.
Local Open Scope ring_scope.

Section BlockTridiagonal.

Variables (F : fieldType) (a s : nat -> nat).

Record factors := Factors {
  A : forall l, 'M[F]_(a l);
  Ax : forall l, 'M[F]_(a l, a l.+1);
  G : forall l, 'M[F]_(s l);
  Gx : forall l, 'M[F]_(s l, s l.+1)
}.

Definition parameters := forall l, 'M[F]_(s l, a l).

(* Regression of layer l on the next, and what it explains of layer l. *)
Definition PsiA (f : factors) l := Ax f l *m invmx (A f l.+1).
Definition PsiG (f : factors) l := Gx f l *m invmx (G f l.+1).
Definition explained_A (f : factors) l := PsiA f l *m A f l.+1 *m (PsiA f l)^T.
Definition explained_G (f : factors) l := PsiG f l *m G f l.+1 *m (PsiG f l)^T.

(* First sweep: subtract what the next layer explains of the covectors. *)
Definition first_sweep (f : factors) L (X : parameters) : parameters := fun l =>
  if (l < L)%N then X l - PsiG f l *m X l.+1 *m (PsiA f l)^T else X l.

(* Second: solve with the conditional covariance. V solves for Y if *)
Definition conditional_flat (f : factors) L l (V : 'M[F]_(s l, a l)) : 'M[F]_(s l, a l) :=
  if (l < L)%N then G f l *m V *m A f l - explained_G f l *m V *m explained_A f l else G f l *m V *m A f l.

(* Third: carry back. *)
Definition third_sweep (f : factors) (V : parameters) : parameters := fun l =>
  if l is k.+1 then V k.+1 - (PsiG f k)^T *m V k *m PsiA f k else V 0%N.

(* V is the step for the covector X. *)
Definition is_step (f : factors) L (X V : parameters) := exists2 V2 : parameters,
  forall l, conditional_flat f L (V2 l) = first_sweep f L X l & forall l, V l = third_sweep f V2 l.

Variables (alpha : forall l, 'M[F]_(a l)) (Phi : forall l, 'M[F]_(s l)).
Hypothesis alpha_invertible : forall l, alpha l \in unitmx.
Hypothesis Phi_invertible : forall l, Phi l \in unitmx.

Local Notation iPhi l := (contragredient (Phi l)).

(* Cross factors are tensors: they move with the frames of both their layers. *)
Definition move_factors (f : factors) := Factors
  (fun l => alpha l *m A f l *m (alpha l)^T)
  (fun l => alpha l *m Ax f l *m (alpha l.+1)^T)
  (fun l => iPhi l *m G f l *m (iPhi l)^T)
  (fun l => iPhi l *m Gx f l *m (iPhi l.+1)^T).

Definition move_covectors (X : parameters) : parameters := fun l => iPhi l *m X l *m (alpha l)^T.
Definition move_vectors (V : parameters) : parameters := fun l => Phi l *m V l *m invmx (alpha l).

(* The moment of two layers together: where cross factors come from. *)
Lemma cross_moment_moves (I : finType) (w : I -> F) m n (x : I -> 'cV[F]_m) (y : I -> 'cV[F]_n) (P : 'M[F]_m) (R : 'M[F]_n) :
  \sum_i w i *: ((P *m x i) *m (R *m y i)^T) = P *m (\sum_i w i *: (x i *m (y i)^T)) *m R^T.
Proof.
rewrite mulmx_sumr mulmx_suml; apply: eq_bigr => i _.
by rewrite -scalemxAr -scalemxAl trmx_mul !mulmxA.
Qed.

Section Moved.

Variables (f : factors) (L : nat).
Hypothesis A_invertible : forall l, A f l \in unitmx.
Hypothesis G_invertible : forall l, G f l \in unitmx.

Lemma regression_moves m n (P : 'M[F]_m) (R : 'M[F]_n) (X : 'M[F]_(m, n)) (M : 'M[F]_n) :
  R \in unitmx -> M \in unitmx -> (P *m X *m R^T) *m invmx (R *m M *m R^T) = P *m (X *m invmx M) *m invmx R.
Proof.
move=> uR uM; have uRt : R^T \in unitmx by rewrite unitmx_tr.
by rewrite !inverse_of_product ?unitmx_mul ?uR // !mulmxA mulmxK.
Qed.

Lemma PsiA_moves l : PsiA (move_factors f) l = alpha l *m PsiA f l *m invmx (alpha l.+1).
Proof. exact: regression_moves. Qed.

Lemma PsiG_moves l : PsiG (move_factors f) l = iPhi l *m PsiG f l *m (Phi l.+1)^T.
Proof. by rewrite -contragredient_inverse //; apply: regression_moves => //; apply: contragredient_unit. Qed.

Lemma explained_A_moves l : explained_A (move_factors f) l = alpha l *m explained_A f l *m (alpha l)^T.
Proof.
rewrite /explained_A PsiA_moves /= !trmx_mul !mulmxA mulmxKV // -!mulmxA; do 4!congr (_ *m _).
by rewrite !mulmxA -trmx_mul mulVmx // trmx1 mul1mx.
Qed.

Lemma explained_G_moves l : explained_G (move_factors f) l = iPhi l *m explained_G f l *m (iPhi l)^T.
Proof.
rewrite /explained_G PsiG_moves /=; move: (PsiG f l) (G f l.+1) => P g.
by rewrite !trmx_mul !trmxK -!mulmxA [(Phi _)^T *m _]mulmxA contragredient_left // mul1mx mulKmx.
Qed.

Lemma first_sweep_moves X l : first_sweep (move_factors f) L (move_covectors X) l = move_covectors (first_sweep f L X) l.
Proof.
rewrite /first_sweep /move_covectors; case: ltnP => // _.
rewrite PsiA_moves PsiG_moves; move: (PsiA f l) (PsiG f l) => P R; rewrite mulmxBr mulmxBl; congr (_ - _).
rewrite !trmx_mul -!mulmxA [(Phi _)^T *m _]mulmxA contragredient_left // mul1mx.
by rewrite [(alpha l.+1)^T *m _]mulmxA contragredient_left // mul1mx.
Qed.

Lemma flat_moves l (V : 'M[F]_(s l, a l)) g h :
  (iPhi l *m g *m (iPhi l)^T) *m (Phi l *m V *m invmx (alpha l)) *m (alpha l *m h *m (alpha l)^T)
  = iPhi l *m (g *m V *m h) *m (alpha l)^T.
Proof. by rewrite !mulmxA mulmxKV // /contragredient trmxK mulmxKV. Qed.

Lemma conditional_flat_moves l (V : 'M[F]_(s l, a l)) :
  conditional_flat (move_factors f) L (Phi l *m V *m invmx (alpha l))
  = iPhi l *m conditional_flat f L V *m (alpha l)^T.
Proof.
rewrite /conditional_flat; case: ltnP => _; last exact: flat_moves.
by rewrite explained_A_moves explained_G_moves !flat_moves mulmxBr mulmxBl.
Qed.

Lemma third_sweep_moves V l : third_sweep (move_factors f) (move_vectors V) l = move_vectors (third_sweep f V) l.
Proof.
case: l => [|k]; rewrite /third_sweep /move_vectors // PsiA_moves PsiG_moves.
move: (PsiA f k) (PsiG f k) => P R; rewrite mulmxBr mulmxBl; congr (_ - _).
by rewrite !trmx_mul !trmxK -!mulmxA !mulKmx.
Qed.

(* Theorem 6. A step for X, moved, is a step for the moved covector. *)
Theorem block_tridiagonal_kfac_is_natural X V :
  is_step f L X V -> is_step (move_factors f) L (move_covectors X) (move_vectors V).
Proof.
case=> V2 solves carried; exists (move_vectors V2) => l.
  by rewrite conditional_flat_moves solves first_sweep_moves.
by rewrite third_sweep_moves /move_vectors carried.
Qed.

End Moved.

End BlockTridiagonal.
