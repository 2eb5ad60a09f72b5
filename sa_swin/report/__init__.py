"""One HTML page on a training, an evaluation or an inference."""
