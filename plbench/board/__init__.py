"""Leaderboards: from records to ranked, verifiable tables for publication.

leaderboards/<board>/board.json          the setting: one protocol
leaderboards/<board>/ledger.json         log of added, verified and withdrawn records; append-only
leaderboards/<board>/records/            packs: record.json, per_class.csv and replicates.csv of records of one row
leaderboards/published/<board>.json      rows quoted from papers
everything else there is generated from these by `plbench board build`, byte-identically
"""
