"""From a transformers model to a bundle: surgery, quantisation, lowering."""
