/* An exporter that uses what few exporters do: structured data, variable length, elements of an enterprise with their
 * type information (RFC 5610), options records. The values of record i are all derived from i.
 *
 *   fixbuf_exporter tcp HOST PORT RECORDS      to a collector
 *   fixbuf_exporter file PATH RECORDS          into an IPFIX File
 *
 * It stands on libfixbuf, whose own reader is ipfixDump. Records follow libfixbuf's layout: packed, every list and
 * variable-length value a small structure that points at its octets.
 */

#include <fixbuf/public.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PEN 32473 /* reserved for documentation (RFC 5612) */
#define DOMAIN 4242
#define EPOCH_MS 1750000000000ULL
#define NTP_2025 3958988800ULL /* 2025-06-15T15:06:40Z in seconds since 1900 */
#define PACKED __attribute__((packed))

enum { FLOW = 300, PART = 301, NAMED = 302, LISTS = 303, NESTED = 304, INTERFACES = 400, TYPES = 401, NAMES = 402 };

static fbInfoElement_t own_elements[] = {
    FB_IE_INIT_FULL("exampleLabel", PEN, 1, FB_IE_VARLEN, FB_IE_DEFAULT, 0, 0, FB_STRING, "A text of any length"),
    FB_IE_INIT_FULL("exampleCounter", PEN, 2, 8, FB_IE_F_ENDIAN | FB_IE_DELTACOUNTER | FB_UNITS_OCTETS, 0, 0,
                    FB_UINT_64, "A counter of octets"),
    FB_IE_INIT_FULL("exampleOffset", PEN, 3, 4, FB_IE_F_ENDIAN | FB_IE_QUANTITY, 0, 0, FB_INT_32, "It may be negative"),
    FB_IE_INIT_FULL("exampleRatio", PEN, 4, 8, FB_IE_F_ENDIAN | FB_IE_QUANTITY, 0, 0, FB_FLOAT_64, "A ratio"),
    FB_IE_INIT_FULL("exampleOctets", PEN, 5, FB_IE_VARLEN, FB_IE_DEFAULT, 0, 0, FB_OCTET_ARRAY, "Octets"),
    FB_IE_NULL,
};

/* Counters take 8 octets in memory; going out they take as many as here (reduced size, RFC 7011, 6.2). */
#define FLOW_FIELDS(OCTETS, PACKETS)                                                                            \
    {                                                                                                           \
        {"exampleLabel", FB_IE_VARLEN, 0}, {"exampleOctets", FB_IE_VARLEN, 0},                                  \
        {"interfaceDescription", FB_IE_VARLEN, 0}, {"flowStartMilliseconds", 8, 0},                             \
        {"flowEndMicroseconds", 8, 0}, {"observationTimeNanoseconds", 8, 0}, {"exampleCounter", 8, 0},          \
        {"exampleRatio", 8, 0}, {"octetDeltaCount", OCTETS, 0}, {"packetDeltaCount", PACKETS, 0},               \
        {"sourceIPv6Address", 16, 0}, {"sourceIPv4Address", 4, 0}, {"destinationIPv4Address", 4, 0},            \
        {"exampleOffset", 4, 0}, {"flowStartSeconds", 4, 0}, {"sourceTransportPort", 2, 0},                     \
        {"destinationTransportPort", 2, 0}, {"sourceMacAddress", 6, 0}, {"protocolIdentifier", 1, 0},           \
        {"dataRecordsReliability", 1, 0}, FB_IESPEC_NULL,                                                       \
    }

static fbInfoElementSpec_t flow_fields[] = FLOW_FIELDS(8, 8);
static fbInfoElementSpec_t flow_export[] = FLOW_FIELDS(4, 3);

typedef struct {
    fbVarfield_t label, octets, description;
    uint64_t start_ms, end_us, seen_ns, counter;
    double ratio;
    uint64_t bytes, packets;
    uint8_t source6[16];
    uint32_t source, destination;
    int32_t offset;
    uint32_t start_s;
    uint16_t source_port, destination_port;
    uint8_t mac[6];
    uint8_t protocol, reliable;
} PACKED flow_t;

static fbInfoElementSpec_t part_fields[] = {
    {"octetDeltaCount", 8, 0}, {"sourceIPv4Address", 4, 0}, {"sourceTransportPort", 2, 0}, FB_IESPEC_NULL,
};

typedef struct {
    uint64_t bytes;
    uint32_t source;
    uint16_t port;
} PACKED part_t;

static fbInfoElementSpec_t named_fields[] = {
    {"exampleLabel", FB_IE_VARLEN, 0}, {"exampleCounter", 8, 0}, FB_IESPEC_NULL,
};

typedef struct {
    fbVarfield_t label;
    uint64_t counter;
} PACKED named_t;

static fbInfoElementSpec_t nested_fields[] = {
    {"basicList", FB_IE_VARLEN, 0}, {"ingressInterface", 4, 0}, FB_IESPEC_NULL,
};

typedef struct {
    fbBasicList_t ports;
    uint32_t interface;
} PACKED nested_t;

static fbInfoElementSpec_t lists_fields[] = {
    {"basicList", FB_IE_VARLEN, 0},       {"basicList", FB_IE_VARLEN, 0},
    {"subTemplateList", FB_IE_VARLEN, 0}, {"subTemplateMultiList", FB_IE_VARLEN, 0},
    {"subTemplateList", FB_IE_VARLEN, 0}, {"flowId", 8, 0},
    FB_IESPEC_NULL,
};

typedef struct {
    fbBasicList_t addresses, labels;
    fbSubTemplateList_t parts;
    fbSubTemplateMultiList_t mixed;
    fbSubTemplateList_t nested;
    uint64_t id;
} PACKED lists_t;

static fbInfoElementSpec_t interface_fields[] = {
    {"ingressInterface", 4, 0}, {"interfaceName", FB_IE_VARLEN, 0}, {"samplingPacketInterval", 4, 0}, FB_IESPEC_NULL,
};

typedef struct {
    uint32_t interface;
    fbVarfield_t name;
    uint32_t interval;
} PACKED interface_t;

static fbInfoModel_t *model;
static fbSession_t *session;
static fBuf_t *out;
static fbTemplate_t *part_template, *named_template, *nested_template;

static void check(gboolean good, GError *error)
{
    if (!good) {
        fprintf(stderr, "fixbuf_exporter: %s\n", error ? error->message : "failed");
        exit(1);
    }
}

/* Both sides of a template: how records lie in memory, which is returned, and how they go out. */
static fbTemplate_t *define(uint16_t id, fbInfoElementSpec_t *inside, fbInfoElementSpec_t *outside, uint16_t scope,
                            char *name)
{
    GError *error = NULL;
    fbTemplate_t *internal = fbTemplateAlloc(model), *external = fbTemplateAlloc(model);
    check(fbTemplateAppendSpecArray(internal, inside, 0xffffffff, &error), error);
    check(fbSessionAddTemplate(session, TRUE, id, internal, &error) != 0, error);
    check(fbTemplateAppendSpecArray(external, outside, 0xffffffff, &error), error);
    if (scope) fbTemplateSetOptionsScope(external, scope);
    check(fbSessionAddTemplateWithMetadata(session, FALSE, id, external, name, NULL, &error) != 0, error);
    return internal;
}

static void use(uint16_t id)
{
    GError *error = NULL;
    check(fBufSetInternalTemplate(out, id, &error), error);
    check(fBufSetExportTemplate(out, id, &error), error);
}

static void append(void *record, size_t size)
{
    GError *error = NULL;
    check(fBufAppend(out, record, size, &error), error);
}

/* Octets that depend on a number; they live as long as the program. */
static fbVarfield_t varied(size_t length, char first)
{
    fbVarfield_t field = {.len = length, .buf = (uint8_t *)malloc(length + 1)};
    for (size_t at = 0; at < length; at++) field.buf[at] = (uint8_t)(first + at % 26);
    return field;
}

static fbVarfield_t worded(const char *format, unsigned number)
{
    char *made = g_strdup_printf(format, number);
    return (fbVarfield_t){.len = strlen(made), .buf = (uint8_t *)made};
}

/* Lengths on both sides of 255, where the length takes three octets (RFC 7011, 7), and none at all. */
static size_t length_of(unsigned number)
{
    static const size_t lengths[] = {0, 1, 254, 255, 256, 700};
    return lengths[number % (sizeof lengths / sizeof *lengths)];
}

static void export_flow(unsigned i)
{
    flow_t flow = {
        .label = worded("label \"%u\"", i),
        .octets = varied(length_of(i), 0),
        .description = varied(length_of(i + 1), 'a'),
        .start_ms = EPOCH_MS + i,
        .end_us = NTP_2025 << 32 | i * 4295000ULL,
        .seen_ns = NTP_2025 << 32 | i * 5000011ULL,
        .counter = i * 0x100000001ULL,
        .ratio = i / 8.0 - 1,
        .bytes = 1000ULL + i,
        .packets = i,
        .source6 = {0x20, 0x01, 0x0d, 0xb8, [14] = i >> 8, [15] = i},
        .source = 0xC0000200 | (i & 255),
        .destination = 0xC6336400 | (i & 255),
        .offset = 5 - (int32_t)i,
        .start_s = 1750000000 + i,
        .source_port = 1024 + i,
        .destination_port = 4739,
        .mac = {2, 0, 0, 0, i >> 8, i},
        .protocol = i % 2 ? 6 : 17,
        .reliable = i % 2 ? 1 : 2,
    };
    append(&flow, sizeof flow);
}

static void fill_part(part_t *part, unsigned i)
{
    *part = (part_t){.bytes = 100 + i, .source = 0xCB007100 | (i & 255), .port = 2000 + i};
}

static void export_lists(unsigned i)
{
    lists_t lists;
    memset(&lists, 0, sizeof lists);
    lists.id = i;

    const fbInfoElement_t *address = fbInfoModelGetElementByName(model, "sourceIPv4Address");
    uint32_t *addresses = fbBasicListInit(&lists.addresses, 3, address, i % 4);
    for (unsigned at = 0; at < i % 4; at++) addresses[at] = 0x0A000000 + 16 * i + at;

    const fbInfoElement_t *label = fbInfoModelGetElementByName(model, "exampleLabel");
    fbVarfield_t *labels = fbBasicListInit(&lists.labels, 0, label, 2);
    labels[0] = worded("first of %u", i);
    labels[1] = varied(length_of(i), 'A');

    part_t *parts = fbSubTemplateListInit(&lists.parts, 3, PART, part_template, i % 3);
    for (unsigned at = 0; at < i % 3; at++) fill_part(parts + at, i + at);

    fbSubTemplateMultiListEntry_t *entry = fbSubTemplateMultiListInit(&lists.mixed, 4, 2);
    part_t *two = fbSubTemplateMultiListEntryInit(entry, PART, part_template, 2);
    fill_part(two, 10 * i);
    fill_part(two + 1, 10 * i + 1);
    entry = fbSubTemplateMultiListGetNextEntry(&lists.mixed, entry);
    named_t *named = fbSubTemplateMultiListEntryInit(entry, NAMED, named_template, 1);
    *named = (named_t){.label = worded("in a multi list, %u", i), .counter = i};

    const fbInfoElement_t *port = fbInfoModelGetElementByName(model, "sourceTransportPort");
    nested_t *nested = fbSubTemplateListInit(&lists.nested, 3, NESTED, nested_template, 2);
    for (unsigned at = 0; at < 2; at++) {
        nested[at].interface = at;
        uint16_t *ports = fbBasicListInit(&nested[at].ports, 3, port, 1 + at);
        for (unsigned each = 0; each <= at; each++) ports[each] = 3000 + i + each;
    }
    append(&lists, sizeof lists);
}

static void export_interface(unsigned i)
{
    interface_t interface = {.interface = i, .name = worded("eth%u", i), .interval = 1000};
    append(&interface, sizeof interface);
}

int main(int count, char **words)
{
    GError *error = NULL;
    fbExporter_t *exporter = NULL;
    if (count == 5 && !strcmp(words[1], "tcp")) {
        static fbConnSpec_t where = {.transport = FB_TCP};
        where.host = words[2];
        where.svc = words[3];
        exporter = fbExporterAllocNet(&where);
    } else if (count == 4 && !strcmp(words[1], "file")) {
        exporter = fbExporterAllocFile(words[2]);
    } else {
        fprintf(stderr, "fixbuf_exporter tcp HOST PORT RECORDS | file PATH RECORDS\n");
        return 2;
    }
    unsigned records = (unsigned)strtoul(words[count - 1], NULL, 10);

    model = fbInfoModelAlloc();
    fbInfoModelAddElementArray(model, own_elements);
    session = fbSessionAlloc(model);
    fbSessionSetDomain(session, DOMAIN);
    out = fBufAllocForExport(session, exporter);
    check(fbSessionSetMetadataExportElements(session, TRUE, TYPES, &error) != 0, error);
    check(fbSessionSetMetadataExportTemplates(session, TRUE, NAMES, &error) != 0, error);
    /* Elements are described before templates use them; templates with a name go out as they are defined. */
    check(fbSessionExportTemplates(session, &error), error);
    define(FLOW, flow_fields, flow_export, 0, "flow");
    part_template = define(PART, part_fields, part_fields, 0, "part");
    named_template = define(NAMED, named_fields, named_fields, 0, "named");
    nested_template = define(NESTED, nested_fields, nested_fields, 0, "nested");
    define(LISTS, lists_fields, lists_fields, 0, "lists");
    define(INTERFACES, interface_fields, interface_fields, 1, "interfaces");

    use(INTERFACES);
    for (unsigned i = 1; i <= 3; i++) export_interface(i);
    use(FLOW);
    for (unsigned i = 0; i < records; i++) export_flow(i);
    use(LISTS);
    for (unsigned i = 0; i < records; i++) export_lists(i);
    check(fBufEmit(out, &error), error);
    fBufFree(out);
    return 0;
}
