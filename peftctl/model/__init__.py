"""The base model: where it is, how it is loaded, what can be targeted, and how an adapter is put in and saved."""
