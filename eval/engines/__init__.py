"""How responses are generated: each engine is a module with a generator function ``answers(job)``, run by a worker."""
