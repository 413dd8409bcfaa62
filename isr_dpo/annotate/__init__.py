"""Choices between a round's two answers, made by people or by an oracle: what the judge's agreement is measured with.

sheet.py draws the rows to label, choices.py keeps what was chosen, server.py is the local page for blind A/B labelling,
oracle.py lets the grader choose by the ground truth instead.
"""
