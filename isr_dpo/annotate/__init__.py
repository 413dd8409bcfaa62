"""Choices between a round's two answers, by people: what the judge's agreement is measured with.

sheet.py draws the rows to label, choices.py keeps what was chosen, session.py is what a page asks for, server.py the
local page for blind A/B labelling (annotate.html, .css, .js), footage.py its images. An oracle's choices have the same
form: analyse/oracle.py.
"""
