"""Receipts for techniques, measured on the user's own data and machine."""
