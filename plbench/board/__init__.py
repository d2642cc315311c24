"""Leaderboards: from records to ranked tables that can be published, checked again and believed.

leaderboards/<board>/board.json          the question: one protocol
leaderboards/<board>/ledger.json         what was added, verified and withdrawn, in order; never shortened
leaderboards/<board>/records/            packs: record.json, per_class.csv and replicates.csv of records of one row
leaderboards/published/<board>.json      rows quoted from papers
everything else there is built from these by `plbench board build`, to the byte
"""
