# frozen_string_literal: true

require "json"

module TaskerCore
  # What became of the tasks that were the work of a step (+each+ of a {Workflow}): their results, in the order of the list's elements. They
  # are read from the database a page at a time, and never held all at once.
  #
  # @example
  #   task = TaskerCore.enqueue(Marketplace, { lines: [{ sku: "A" }, { sku: "B" }] })
  #   reserved = task.results[:reserve]         # in a handler: step.results[:reserve]
  #   reserved.size                             # => 2
  #   reserved.sum { |line| line[:reserved] }   # => 4
  #   reserved.errors.map(&:item)               # => []
  class Children
    include Enumerable

    # One of them: its +item+, the number of its element, from 0; its +task+'s id and +state+; its +result+, where it is complete; and its
    # +error+ (class, message, …), where it is dead.
    Child = Struct.new(:item, :task, :state, :result, :error, keyword_init: true)

    # @param size [Integer]
    # @yieldparam after [Integer, nil] the last item of the page before
    # @yieldparam dead [Boolean] whether only those that are dead are wanted
    # @yieldreturn [String] the next page, as JSON
    # @api private
    def initialize(size, &read)
      @size = size
      @read = read
    end

    # @return [Integer] how many there are
    attr_reader :size
    alias length size

    # @return [Boolean]
    def empty? = size.zero?

    # One result after the other; nil for a task that is dead, or has none. None is kept.
    # @yield [Object, nil]
    def each
      return enum_for(:each) { size } unless block_given?

      each_child { |child| yield child.result }
      self
    end

    # One task after the other.
    # @yield [Child]
    def each_child(&block)
      return enum_for(:each_child) { size } unless block

      pages(dead: false, &block)
      self
    end

    # @return [Array<Child>] those that are dead, which the step tolerates
    def errors = [].tap { |dead| pages(dead: true) { |child| dead << child } }

    # @return [String]
    def inspect = "#<#{self.class} #{size}>"

    private

    def pages(dead:)
      last = nil
      until (page = JSON.parse(@read.call(last, dead), symbolize_names: true, max_nesting: false)).empty?
        page.each { |child| yield Child.new(task: child[:id], **child.slice(:item, :state, :result, :error)) }
        last = page.last[:item]
      end
    end
  end
end
