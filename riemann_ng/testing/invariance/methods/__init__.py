"""Reference implementations of known methods, small and in the dtype of the model, for the atlas and for tests."""
