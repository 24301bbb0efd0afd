"""How answers are generated: each engine is a module with ``answers(job)``, run in a process of its own."""
