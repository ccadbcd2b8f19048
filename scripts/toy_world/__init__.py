"""A deterministic toy world of talking cartoon faces, written as real H.264 + AAC files.

`cues` names what can be seen and heard and which emotion shows what; `world` plans actors and clips; `face`
draws, `voice` synthesises, `text` explains, `video` encodes; `build` puts a plan on disk.
"""
