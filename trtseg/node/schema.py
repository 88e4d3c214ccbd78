"""The tables of a store, and the number of their version, which a change of them raises."""

from __future__ import annotations

VERSION = 3
SCHEMA = """
CREATE TABLE association(id INTEGER PRIMARY KEY AUTOINCREMENT, opened REAL, ended REAL, how TEXT,
  refused INTEGER DEFAULT 0);
CREATE TABLE series(id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT UNIQUE, state TEXT, revision INTEGER DEFAULT 0,
  crashes INTEGER DEFAULT 0, reason TEXT, ended REAL);
CREATE TABLE instance(id INTEGER PRIMARY KEY AUTOINCREMENT, series INTEGER, association INTEGER, sop TEXT UNIQUE,
  sop_class TEXT, sha256 BLOB, file TEXT, bytes INTEGER, received REAL, related INTEGER, acquisition TEXT,
  in_acquisition INTEGER, crashes INTEGER DEFAULT 0);
CREATE INDEX of_series ON instance(series, id);
CREATE INDEX of_association ON instance(association, id);
CREATE TABLE result(id INTEGER PRIMARY KEY AUTOINCREMENT, series INTEGER, revision INTEGER, kind TEXT, sop_class TEXT,
  sop TEXT, file TEXT, bytes INTEGER, made REAL);
CREATE TABLE delivery(result INTEGER, destination TEXT, state TEXT, attempts INTEGER DEFAULT 0, due REAL, ended REAL,
  reason TEXT, PRIMARY KEY(result, destination));
CREATE INDEX waiting ON delivery(destination, due) WHERE state='waiting';
CREATE TABLE refusal(association INTEGER, series TEXT, sop TEXT, at REAL);
CREATE INDEX refused_of_series ON refusal(series); CREATE INDEX refused_on_association ON refusal(association);
CREATE TABLE commitment(id INTEGER PRIMARY KEY AUTOINCREMENT, ae TEXT, request TEXT,
  attempts INTEGER DEFAULT 0, due REAL);
CREATE TABLE counter(name TEXT PRIMARY KEY, value REAL);
"""
