-- The shop's own tables, in the same database. Every run of the demo opens a shop of its own, so that what an earlier, interrupted run left
-- in the queues changes nothing here.
CREATE SCHEMA IF NOT EXISTS shop;

CREATE TABLE IF NOT EXISTS shop.stock (
    shop      text NOT NULL,
    sku       text NOT NULL,
    price     int  NOT NULL, -- in cents
    delivered int  NOT NULL, -- units at the start
    on_hand   int  NOT NULL CHECK (on_hand >= 0),
    PRIMARY KEY (shop, sku)
);

CREATE TABLE IF NOT EXISTS shop.reservations (
    shop   text NOT NULL,
    number text NOT NULL,
    sku    text NOT NULL,
    units  int  NOT NULL,
    PRIMARY KEY (shop, number, sku)
);

-- What the payment gateways saw: one row per call, so that "the third try" is a fact and not a guess.
CREATE TABLE IF NOT EXISTS shop.gateway_calls (
    shop    text NOT NULL,
    number  text NOT NULL,
    gateway text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS shop.orders (
    shop     text NOT NULL,
    number   text NOT NULL,
    status   text NOT NULL CHECK (status IN ('shipped', 'refused')),
    reason   text,
    tracking text,
    PRIMARY KEY (shop, number)
);

CREATE TABLE IF NOT EXISTS shop.emails (
    shop    text NOT NULL,
    number  text NOT NULL,
    address text NOT NULL,
    subject text NOT NULL,
    PRIMARY KEY (shop, number)
);
