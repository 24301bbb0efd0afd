"""The page that shows what each unit of an adapter does."""
