"""Using a model: generate text, score multiple-choice examples, compare two models."""
