"""DeepSpeed: the one room that imports it."""
