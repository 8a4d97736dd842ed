/* A library that is no plugin. */
int plugin_stranger(void);

int plugin_stranger(void)
{
    return 1;
}
