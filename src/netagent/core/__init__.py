"""Pure core: values in, values out. No asyncio, no clock, no logging, no sockets."""
