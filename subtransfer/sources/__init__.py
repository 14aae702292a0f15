"""Where a checkpoint can come from; every source ends as a local Hugging Face directory."""
