"""`edgeseq report`: a page about what a bundle's depth policies give, with nothing to load from elsewhere.

`measuring` decodes, `tallies` counts, `figures` and `sentences` show, `page` puts them together.
"""
