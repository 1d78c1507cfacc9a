# frozen_string_literal: true

require "json"

module TaskerCore
  # Results of steps by their names, read from the database one by one, when they are asked for: what is large is not held all at once. It
  # is used like the Hash of them; what only a Hash can do (+to_h+, +merge+, …) reads all.
  class Results
    include Enumerable

    # @param names [Array<Symbol>] in order
    # @param see [Proc] what a step's name and its result are seen as
    # @yield [Array<String>] names
    # @yieldreturn [Array<Array(String, String)>] names and JSON of those that are there
    # @api private
    def initialize(names, see, &read)
      @names = names
      @see = see
      @read = read
      @known = {}
    end

    # @return [Array<Symbol>] the names of the steps
    def keys = @names.dup

    # @return [Integer]
    def size = @names.size
    alias length size

    # @param name [Symbol]
    # @return [Boolean]
    def key?(name) = @names.include?(name)
    alias has_key? key?
    alias include? key?
    alias member? key?

    # @return [Boolean]
    def empty? = @names.empty?

    # @param name [Symbol]
    # @return [Object, nil]
    def [](name)
      return unless key?(name)

      @known.fetch(name) { @known[name] = read(name) }
    end

    # @param name [Symbol]
    # @return [Object]
    # @raise [KeyError]
    def fetch(name, *default)
      return self[name] if key?(name)
      return yield(name) if block_given?

      default.fetch(0) { raise KeyError.new("key not found: #{name.inspect}", receiver: self, key: name) }
    end

    # @param name [Symbol]
    # @return [Object, nil]
    def dig(name, *rest) = rest.empty? ? self[name] : self[name]&.dig(*rest)

    # One after the other; none is kept.
    # @yield [Symbol, Object]
    def each
      return enum_for(:each) { size } unless block_given?

      @names.each { |name| yield [name, @known.fetch(name) { read(name) }] }
      self
    end
    alias each_pair each

    # @return [Hash{Symbol => Object}] all of them
    def to_h(&block)
      all = @names.to_h { |name| [name, self[name]] }
      block ? all.to_h(&block) : all
    end
    alias to_hash to_h

    # For pattern matching.
    # @return [Hash{Symbol => Object}]
    def deconstruct_keys(names) = names ? names.select { |name| key?(name) }.to_h { |name| [name, self[name]] } : to_h

    # @return [Boolean]
    def ==(other) = other.respond_to?(:to_h) && to_h == other.to_h

    # @return [String]
    def inspect = "#<#{self.class} #{@names.join(', ')}>"

    private

    def read(name)
      json = @read.call([name.to_s]).to_h[name.to_s]
      json && @see.call(name, JSON.parse(json, symbolize_names: true, max_nesting: false))
    end

    def respond_to_missing?(method, all = false) = Hash.public_method_defined?(method) || super

    def method_missing(method, ...) = Hash.public_method_defined?(method) ? to_h.public_send(method, ...) : super
  end
end
