"""PEFT's own tests, run against MonoLoRA: ``python -m tests.peft_suite`` (``make test-peft``).

The tests come from the source distribution of the installed PEFT version and are never committed. A pytest plugin
(``plugin``) puts ``MonoLoraConfig`` in the place of ``peft.LoraConfig``, drops what tests other methods, and expects
the failures that ``expected`` lists: tests that do what MonoLoRA refuses must raise our error. The models that the
tests take from the hub are tiny random ones in a local hub cache (``hub``). The suite runs on the CPU.
"""
