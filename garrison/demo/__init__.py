"""The demo mesh: BookInfo behind real Envoys that ask a real `garrison serve`, and a table of calls."""
