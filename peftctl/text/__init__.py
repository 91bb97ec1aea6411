"""From meaning to ids: conversations to text by the chat template, text to ids with what is learned marked."""
