"""Linear maps, and the structured blocks they act on. Knows tensors and axes; knows no operator."""
