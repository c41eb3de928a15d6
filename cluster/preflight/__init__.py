"""Is a node fit: what it is and has, our code brought there, and what one attempt needs of it."""
