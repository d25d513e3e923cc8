"""What a Hugging Face decoder must have to carry heads, and how its packed documents are kept apart."""
