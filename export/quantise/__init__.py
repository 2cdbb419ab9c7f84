"""Linear weights to int4, embeddings to int8."""
