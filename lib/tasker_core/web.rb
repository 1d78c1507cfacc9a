# frozen_string_literal: true

module TaskerCore
  # The dashboard, and the API under +api/v1+, as a Rack application: the same pages as those of +tasker serve+, answered in this process.
  #
  # Nothing is open by default but to the host itself. Who may see it, and do what, is what the application says of each request: whoever
  # it has signed in is the author of what they change ({authorize}). Programs send a token instead (+tasker token create+).
  #
  # @example config/routes.rb
  #   mount TaskerCore::Web => "/tasker"
  # @example config/initializers/tasker.rb
  #   TaskerCore::Web.authorize do |request|
  #     user = request.env["warden"].user
  #     { name: user.email, role: user.admin? ? :operator : :reader } if user
  #   end
  class Web
    # The most that a request may bring, in bytes.
    MAX_BODY = 4 * 1024 * 1024

    class << self
      # Who is signed in, by the application's own means. Without it, the host itself may do everything, and others need a token.
      # @yieldparam request [Rack::Request]
      # @yieldreturn [Hash, nil] +name:+ as the record of changes is to have them, +role:+ +:reader+, +:operator+ or +:admin+; nil: nobody
      #   who may see it
      # @return [void]
      def authorize(&block)
        @authorize = block
        @current = nil
      end

      # @param env [Hash] Rack's environment of a request
      # @return [Array(Integer, Hash, Array<String>)]
      def call(env) = current.call(env)

      private

      # One for each process: a server's children do not share it.
      def current
        @current = nil unless @pid == Process.pid
        @pid = Process.pid
        @current ||= new(authorize: @authorize)
      end
    end

    # @param client [Client]
    # @param authorize [Proc, nil] see {Web.authorize}
    def initialize(client: TaskerCore.client, authorize: nil)
      @authorize = authorize
      @native = Native::Web.start(client.native, TaskerCore.configuration.file, authorize.nil?)
    end

    # @param env [Hash] Rack's environment of a request
    # @return [Array(Integer, Hash, Array<String>)]
    def call(env)
      # Links are relative to where it is mounted, which is a folder.
      return [302, { "location" => "#{env['SCRIPT_NAME']}/" }, []] unless folder?(env)

      body = env["rack.input"]&.read(MAX_BODY + 1).to_s
      return [413, { "content-type" => "text/plain" }, ["at most #{MAX_BODY} bytes are accepted\n"]] if body.bytesize > MAX_BODY

      request = [env["REQUEST_METHOD"], target(env), headers(env), body, env["REMOTE_ADDR"], signed_in(env)]
      status, headers, answer = @native.answer(request)
      [status, headers.to_h, [answer]]
    end

    private

    # Rails says / for the mount's own path, with or without one at its end.
    def folder?(env)
      return env["PATH_INFO"] != "" unless env["PATH_INFO"] == "/"

      env.fetch("REQUEST_URI", "/")[/\A[^?]*/].end_with?("/")
    end

    def target(env)
      query = env["QUERY_STRING"].to_s
      query.empty? ? env["PATH_INFO"] : "#{env['PATH_INFO']}?#{query}"
    end

    def headers(env)
      named = env.filter_map { |name, value| [name.delete_prefix("HTTP_").tr("_", "-"), value.to_s] if name.start_with?("HTTP_") }
      env["CONTENT_TYPE"] ? [*named, ["content-type", env["CONTENT_TYPE"]]] : named
    end

    def signed_in(env)
      return unless @authorize

      require "rack/request"
      somebody = @authorize.call(Rack::Request.new(env))
      [somebody.fetch(:name).to_s, somebody.fetch(:role, :reader).to_s] if somebody
    end
  end
end
