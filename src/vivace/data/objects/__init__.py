"""Data that are objects of the user's program: data sets, arrays, frames. Their libraries are never imported here."""
