"""Other services' APIs in front of the same contents: each a thin adapter, at the level of `api`.

A dialect turns a call into a `GenerateIn`, waits for its content, and answers in its own words.
"""
