"""The CORE protocol as pure functions of texts and arrays (METHOD sections 1 to 4): teacher, hint, distance, rewards, advantages.

One problem at a time; no files, no processes, no models except the sentence embedder of `embeddings`.
"""
