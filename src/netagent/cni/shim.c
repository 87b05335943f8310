/*
 * The CNI plugin that the container runtime executes, as /opt/cni/bin/netagent.
 *
 * On the host there is no Python, so this program only carries the call to the agent: the CNI_* environment as headers
 * and standard input as the body of one HTTP/1.1 POST to the agent's unix socket. The answer's body goes to standard
 * output; exit status 0 for HTTP 200, 1 otherwise (the body is then a CNI error object).
 *
 * An agent that is away (restart, upgrade) is waited for: connecting is tried again every RETRY_MS, and a connection
 * that breaks in the middle is made again, since every command is idempotent in the agent. All of it together is
 * bounded by WAIT_S; after that the answer is CNI error 11, "try again later".
 *
 * Keys of the network configuration that this program reads: cniVersion, socket (path), waitSeconds (1 to 600).
 * Limits: 1 MiB in, 1 MiB out, 8000 bytes per variable. Only static buffers; no other program is run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/netagent/cni.sock"
#define DEFAULT_WAIT_S 60
#define MAX_WAIT_S 600
#define RETRY_MS 50
#define MAX_BODY ((size_t)1 << 20)
#define MAX_VALUE 8000
#define MAX_HEAD ((size_t)1 << 16)

enum cni_code { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_JSON = 6, BAD_CONFIG = 7, TRY_AGAIN = 11 };
enum outcome { ANSWERED, BROKEN, TOO_LONG };

struct slice {
	const char *at;
	size_t len;
};

static char config[MAX_BODY + 1];
static char head[MAX_HEAD];
static char reply[MAX_HEAD + MAX_BODY];
static char version[16] = "1.0.0";

/* --- output --------------------------------------------------------------------------------------------------- */

static bool print_all(const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = write(STDOUT_FILENO, text, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

/* Both texts are plain: no quotes, no backslashes, no control characters. */
static int fail(enum cni_code code, const char *msg, const char *details)
{
	char out[1024];
	int n = snprintf(out, sizeof out, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"netagent: %s\",\"details\":\"%s\"}\n",
			 version, (int)code, msg, details);
	if (n > 0 && (size_t)n < sizeof out && !print_all(out, (size_t)n))
		return 2;
	return 1;
}

static int print_versions(void)
{
	char out[160];
	int n = snprintf(out, sizeof out,
			 "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", version);
	return n > 0 && (size_t)n < sizeof out && print_all(out, (size_t)n) ? 0 : 1;
}

/* --- the little of JSON that is needed: members of the outermost object --------------------------------------- */

static size_t skip_space(const char *s, size_t i, size_t len)
{
	while (i < len && (s[i] == ' ' || s[i] == '\t' || s[i] == '\n' || s[i] == '\r'))
		i++;
	return i;
}

/* i is at the opening quote; returns the index after the closing one, or 0 when there is none. */
static size_t skip_string(const char *s, size_t i, size_t len)
{
	for (i++; i < len; i++) {
		if (s[i] == '\\')
			i++;
		else if (s[i] == '"')
			return i + 1;
	}
	return 0;
}

static size_t skip_value(const char *s, size_t i, size_t len)
{
	size_t depth = 0, start = i;

	while (i < len) {
		char c = s[i];
		if (c == '"') {
			i = skip_string(s, i, len);
			if (i == 0)
				return 0;
			if (depth == 0)
				return i;
			continue;
		}
		if (c == '{' || c == '[') {
			depth++;
		} else if (c == '}' || c == ']') {
			if (depth == 0)
				return i > start ? i : 0;
			if (--depth == 0)
				return i + 1;
		} else if (depth == 0 && (c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r')) {
			return i > start ? i : 0;
		}
		i++;
	}
	return 0;
}

/* Raw text of the last member of that name in the outermost object; len 0 when absent. False: not a JSON object. */
static bool find_member(const char *s, size_t len, const char *name, struct slice *found)
{
	size_t i = skip_space(s, 0, len), wanted = strlen(name);

	found->at = s;
	found->len = 0;
	if (i >= len || s[i] != '{')
		return false;
	i = skip_space(s, i + 1, len);
	if (i < len && s[i] == '}')
		return true;
	for (;;) {
		if (i >= len || s[i] != '"')
			return false;
		size_t key = i + 1, after = skip_string(s, i, len);
		if (after == 0)
			return false;
		i = skip_space(s, after, len);
		if (i >= len || s[i] != ':')
			return false;
		size_t value = skip_space(s, i + 1, len);
		i = value < len ? skip_value(s, value, len) : 0;
		if (i == 0)
			return false;
		if (after - key - 1 == wanted && memcmp(s + key, name, wanted) == 0) {
			found->at = s + value;
			found->len = i - value;
		}
		i = skip_space(s, i, len);
		if (i < len && s[i] == '}')
			return true;
		if (i >= len || s[i] != ',')
			return false;
		i = skip_space(s, i + 1, len);
	}
}

/* Copies a JSON string of plain printable ASCII (a slash may be escaped); false when it is anything else. */
static bool plain_string(struct slice value, char *out, size_t size)
{
	size_t n = 0;

	if (value.len < 2 || value.at[0] != '"')
		return false;
	for (size_t i = 1; i + 1 < value.len; i++) {
		unsigned char c = (unsigned char)value.at[i];
		if (c == '\\' && value.at[i + 1] == '/')
			continue;
		if (c < 0x20 || c > 0x7e || c == '\\' || c == '"' || n + 1 >= size)
			return false;
		out[n++] = (char)c;
	}
	out[n] = '\0';
	return n > 0;
}

static void read_version(void)
{
	struct slice value;
	char text[sizeof version];

	if (find_member(config, strlen(config), "cniVersion", &value) && plain_string(value, text, sizeof text))
		memcpy(version, text, sizeof text);
}

static bool read_wait(size_t len, long *wait_s)
{
	struct slice value;

	*wait_s = DEFAULT_WAIT_S;
	if (!find_member(config, len, "waitSeconds", &value) || value.len == 0)
		return true;
	char *end = NULL;
	errno = 0;
	*wait_s = strtol(value.at, &end, 10);
	return errno == 0 && end == value.at + value.len && *wait_s >= 1 && *wait_s <= MAX_WAIT_S;
}

/* --- the request ---------------------------------------------------------------------------------------------- */

static const char *const VARIABLES[][2] = {
	{ "CNI_COMMAND", "CNI-Command" }, { "CNI_CONTAINERID", "CNI-ContainerID" }, { "CNI_NETNS", "CNI-NetNS" },
	{ "CNI_IFNAME", "CNI-IfName" },	  { "CNI_ARGS", "CNI-Args" },		    { "CNI_PATH", "CNI-Path" },
};

/* Returns the name of the offending variable, or NULL. */
static const char *build_head(size_t body_len, size_t *head_len)
{
	int n = snprintf(head, sizeof head,
			 "POST /cni HTTP/1.1\r\nHost: netagent\r\nConnection: close\r\n"
			 "Content-Type: application/json\r\nContent-Length: %zu\r\n",
			 body_len);
	size_t used = n > 0 ? (size_t)n : 0;

	for (size_t v = 0; v < sizeof VARIABLES / sizeof VARIABLES[0]; v++) {
		const char *value = getenv(VARIABLES[v][0]);
		if (value == NULL)
			continue;
		if (strlen(value) > MAX_VALUE)
			return VARIABLES[v][0];
		for (const char *c = value; *c != '\0'; c++)
			if ((unsigned char)*c < 0x20 || (unsigned char)*c == 0x7f)
				return VARIABLES[v][0];
		n = snprintf(head + used, sizeof head - used, "%s: %s\r\n", VARIABLES[v][1], value);
		if (n < 0 || (size_t)n >= sizeof head - used)
			return VARIABLES[v][0];
		used += (size_t)n;
	}
	if (used + 2 >= sizeof head)
		return "CNI_ARGS";
	memcpy(head + used, "\r\n", 2);
	*head_len = used + 2;
	return NULL;
}

static bool read_stdin(size_t *len)
{
	*len = 0;
	for (;;) {
		if (*len == sizeof config)
			return false;
		ssize_t n = read(STDIN_FILENO, config + *len, sizeof config - *len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		if (n == 0)
			return true;
		*len += (size_t)n;
	}
}

/* --- the exchange --------------------------------------------------------------------------------------------- */

static long now_ms(void)
{
	struct timespec t;

	if (clock_gettime(CLOCK_MONOTONIC, &t) != 0)
		abort();
	return (long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool wait_for(int fd, short events, long deadline_ms)
{
	for (;;) {
		long left = deadline_ms - now_ms();
		struct pollfd p = { .fd = fd, .events = events, .revents = 0 };
		if (left <= 0)
			return false;
		int n = poll(&p, 1, (int)left);
		if (n > 0)
			return true;
		if (n == 0 || errno != EINTR)
			return false;
	}
}

static bool send_all(int fd, const char *data, size_t len, long deadline_ms)
{
	while (len > 0) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			if (!wait_for(fd, POLLOUT, deadline_ms))
				return false;
			continue;
		}
		if (n < 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

/* Value of Content-Length in the head (which ends in an empty line), or -1. */
static long content_length(const char *text, const char *end)
{
	static const char NAME[] = "\r\ncontent-length:";

	for (const char *p = text; (size_t)(end - p) > sizeof NAME; p++)
		if (strncasecmp(p, NAME, sizeof NAME - 1) == 0)
			return strtol(p + sizeof NAME - 1, NULL, 10);
	return -1;
}

/* Whether reply[0..len) holds a whole answer; sets its status and body. */
static bool whole_answer(size_t len, int *status, struct slice *body)
{
	const char *end = memmem(reply, len, "\r\n\r\n", 4);

	if (end == NULL || strncmp(reply, "HTTP/1.", 7) != 0)
		return false;
	long length = content_length(reply, end + 2);
	body->at = end + 4;
	if (length < 0 || (size_t)length > len - (size_t)(body->at - reply))
		return false;
	body->len = (size_t)length;
	*status = (int)strtol(reply + 9, NULL, 10);
	return true;
}

static enum outcome receive(int fd, long deadline_ms, int *status, struct slice *body)
{
	size_t len = 0;

	while (len < sizeof reply - 1) {
		ssize_t n = recv(fd, reply + len, sizeof reply - 1 - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			if (!wait_for(fd, POLLIN, deadline_ms))
				return BROKEN;
			continue;
		}
		if (n <= 0)
			return BROKEN;
		len += (size_t)n;
		reply[len] = '\0';
		if (whole_answer(len, status, body))
			return ANSWERED;
	}
	return TOO_LONG;
}

static enum outcome exchange(const struct sockaddr_un *agent, size_t head_len, size_t body_len, long deadline_ms,
			     int *status, struct slice *body)
{
	enum outcome result = BROKEN;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return BROKEN;
	if (connect(fd, (const struct sockaddr *)agent, sizeof *agent) == 0 &&
	    send_all(fd, head, head_len, deadline_ms) && send_all(fd, config, body_len, deadline_ms))
		result = receive(fd, deadline_ms, status, body);
	(void)close(fd); /* nothing more is expected of it */
	return result;
}

static int call_agent(const struct sockaddr_un *agent, size_t head_len, size_t body_len, long wait_s)
{
	const struct timespec pause = { .tv_sec = 0, .tv_nsec = RETRY_MS * 1000000L };
	long deadline_ms = now_ms() + wait_s * 1000;
	struct slice body = { reply, 0 };
	int status = 0;

	for (;;) {
		enum outcome result = exchange(agent, head_len, body_len, deadline_ms, &status, &body);
		if (result == TOO_LONG)
			return fail(IO_FAILURE, "the agent's answer is too long", agent->sun_path);
		if (result == ANSWERED)
			break;
		if (now_ms() + RETRY_MS >= deadline_ms)
			return fail(TRY_AGAIN, "the agent does not answer; try again later; is it running?",
				    agent->sun_path);
		(void)nanosleep(&pause, NULL); /* a signal may shorten it */
	}
	if (!print_all(body.at, body.len))
		return 1;
	return status == 200 ? 0 : 1;
}

int main(void)
{
	struct sockaddr_un agent = { .sun_family = AF_UNIX, .sun_path = DEFAULT_SOCKET };
	const char *command = getenv("CNI_COMMAND");
	size_t body_len = 0, head_len = 0;
	struct slice value;
	long wait_s = 0;

	if (command == NULL || *command == '\0')
		return fail(BAD_ENVIRONMENT, "CNI_COMMAND is not set", "this program is a CNI plugin; a container runtime runs it");
	if (!read_stdin(&body_len) || body_len > MAX_BODY)
		return fail(IO_FAILURE, "cannot read the network configuration", "standard input; at most 1 MiB");
	config[body_len] = '\0';
	read_version();
	if (strcmp(command, "VERSION") == 0)
		return print_versions();
	if (!find_member(config, body_len, "socket", &value))
		return fail(BAD_JSON, "the network configuration is not a JSON object", "standard input");
	if (value.len > 0 && !plain_string(value, agent.sun_path, sizeof agent.sun_path))
		return fail(BAD_CONFIG, "socket in the network configuration is refused",
			    "accepted: a path of 1 to 107 plain characters");
	if (!read_wait(body_len, &wait_s))
		return fail(BAD_CONFIG, "waitSeconds in the network configuration is refused", "accepted: 1 to 600");
	const char *bad = build_head(body_len, &head_len);
	if (bad != NULL)
		return fail(BAD_ENVIRONMENT, "variable holds control characters or is longer than 8000 bytes", bad);
	return call_agent(&agent, head_len, body_len, wait_s);
}
