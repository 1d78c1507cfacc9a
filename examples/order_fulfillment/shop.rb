# frozen_string_literal: true

require "pg"

# The shop's side of the example: its tables (shop.sql) and what can be done with them. Every method can be called twice for the same order
# and has its effect once, because a step may run again after a crash.
class Shop
  OutOfStock = Class.new(StandardError)
  SCHEMA = File.expand_path("shop.sql", __dir__)

  def initialize(name, connection = Shop.connection)
    @name = name
    @connection = connection
  end

  # One connection for each thread of a worker.
  def self.connection
    current = Thread.current[:shop_connection]
    return current if current && current.status == PG::CONNECTION_OK

    Thread.current[:shop_connection] = connect
  end

  def self.connect
    PG.connect(ENV.fetch("DATABASE_URL")).tap do |connection|
      connection.type_map_for_results = PG::BasicTypeMapForResults.new(connection)
    end
  end

  # @param stock [Hash{String => Array(Integer, Integer)}] units and price in cents by SKU
  def open(stock)
    @connection.exec("SET client_min_messages = warning")
    @connection.exec(File.read(SCHEMA))
    stock.each do |sku, (units, price)|
      query("INSERT INTO shop.stock (shop, sku, price, delivered, on_hand) VALUES ($1, $2, $3, $4, $4)", sku, price, units)
    end
  end

  def price(sku) = query("SELECT price FROM shop.stock WHERE shop = $1 AND sku = $2", sku).first&.fetch("price")

  # Takes every item from stock, or none. True if the order holds its items.
  def reserve(number, items)
    @connection.transaction do
      next if query("SELECT FROM shop.reservations WHERE shop = $1 AND number = $2", number).ntuples.positive?

      # In one order everywhere, so that two orders for the same items cannot wait for each other.
      items.sort_by { |item| item[:sku] }.each do |item|
        taken = query("UPDATE shop.stock SET on_hand = on_hand - $3 WHERE shop = $1 AND sku = $2 AND on_hand >= $3", item[:sku],
                      item[:units])
        raise OutOfStock if taken.cmd_tuples.zero?

        query("INSERT INTO shop.reservations (shop, number, sku, units) VALUES ($1, $2, $3, $4)", number, item[:sku], item[:units])
      end
    end
    true
  rescue OutOfStock
    false
  end

  # @return [Integer] how often the gateway was called for this order, with this call
  def record_gateway_call(number, gateway)
    query("INSERT INTO shop.gateway_calls (shop, number, gateway) VALUES ($1, $2, $3)", number, gateway)
    query("SELECT count(*) FROM shop.gateway_calls WHERE shop = $1 AND number = $2", number).first["count"]
  end

  # Ships the order with what it reserved, or refuses it and puts that back.
  def close(number, tracking: nil, reason: nil)
    @connection.transaction do
      status = reason ? "refused" : "shipped"
      closed = query("INSERT INTO shop.orders (shop, number, status, reason, tracking) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                     number, status, reason, tracking)
      next if closed.cmd_tuples.zero? || reason.nil?

      query("UPDATE shop.stock s SET on_hand = on_hand + r.units FROM shop.reservations r " \
            "WHERE r.shop = $1 AND r.number = $2 AND s.shop = r.shop AND s.sku = r.sku", number)
      query("DELETE FROM shop.reservations WHERE shop = $1 AND number = $2", number)
    end
  end

  def email(number, address, subject)
    query("INSERT INTO shop.emails (shop, number, address, subject) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", number, address,
          subject)
  end

  # @return [Hash{Array(String, String) => Integer}] how many orders by status and reason
  def outcomes
    query("SELECT status, reason, count(*) FROM shop.orders WHERE shop = $1 GROUP BY 1, 2 ORDER BY 1 DESC, 2").to_h do |row|
      [[row["status"], row["reason"]], row["count"]]
    end
  end

  # @return [Array<Hash>] sku, delivered, shipped, on_hand
  def inventory
    query("SELECT s.sku, s.delivered, coalesce(sum(r.units), 0)::int AS shipped, s.on_hand FROM shop.stock s " \
          "LEFT JOIN shop.reservations r USING (shop, sku) WHERE s.shop = $1 GROUP BY s.sku, s.delivered, s.on_hand ORDER BY s.sku").to_a
  end

  def emails = query("SELECT count(*) FROM shop.emails WHERE shop = $1").first["count"]

  private

  def query(sql, *values) = @connection.exec_params(sql, [@name, *values])
end
