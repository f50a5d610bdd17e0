"""One file per task: what is trained, with which loss, on which batches. The loop and the step know none of them."""
