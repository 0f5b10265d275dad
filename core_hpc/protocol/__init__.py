"""The CORE protocol as pure functions of texts and arrays.

It consists of teacher, hint, distance, rewards and advantages. METHOD.md in this folder describes
the method; docstrings here cite its sections. Every function handles one problem at a time. Nothing
here opens files or starts processes, and the sentence embedder of `embeddings.py` is the only
model.
"""
